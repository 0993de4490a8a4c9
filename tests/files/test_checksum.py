from keras_imm.files.checksum import sha256


def test_the_vectors_of_the_standard(tmp_path):
    """FIPS 180-2, B.1 and B.3."""
    for content, digest in (
        (b"abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
        (
            b"a" * 1_000_000,
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
        ),
    ):
        (tmp_path / "a").write_bytes(content)
        assert sha256(tmp_path / "a") == digest
