"""IDX files, written here by the format's description and not by the package."""

import gzip
import pickle
import struct
import tracemalloc

import numpy as np
import pytest
from image_files import pixels, write_idx, write_idx_split

from keras_imm.datasets import load
from keras_imm.datasets.idx_files import IdxFiles

pytestmark = pytest.mark.one_backend("NumPy code")

LABELS = np.array([2, 0, 1, 1, 0])


def images(count=5):
    return np.stack([pixels(i, 6, 4, channels=1) for i in range(count)])


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("labels_end", ["", ".gz"])
def test_images_and_the_labels_beside_them_are_read(tmp_path, end, labels_end):
    path = tmp_path / f"train-images-idx3-ubyte{end}"
    write_idx(path, images())
    write_idx(tmp_path / f"train-labels-idx1-ubyte{labels_end}", LABELS)
    source = pickle.loads(pickle.dumps(IdxFiles(path)))
    assert (source.image_shape, source.num_classes) == ((6, 4, 1), 3)
    for i in range(5):
        np.testing.assert_array_equal(source[i]["image"][..., 0], images()[i])
        assert source[i]["label"] == LABELS[i]
    assert len(pickle.dumps(source)) < 1000
    assert source.record_name(2) == f"{path}[2]"
    assert IdxFiles(path, labels=False)[0]["label"] == -1


def test_images_without_labels_and_in_colour(tmp_path):
    colour = np.stack([pixels(i) for i in range(3)])
    write_idx(tmp_path / "some.idx4-ubyte.gz", colour)
    source = IdxFiles(tmp_path / "some.idx4-ubyte.gz")
    assert (source.image_shape, source.num_classes) == ((8, 8, 3), 0)
    np.testing.assert_array_equal(source[2]["image"], colour[2])


def test_a_folder_is_read_by_split(tmp_path):
    write_idx_split(tmp_path, "train", images(), LABELS, end=".gz")
    write_idx_split(tmp_path, "t10k", images()[:2], LABELS[:2])
    train, test = load(tmp_path, 5, shuffle=False), load(tmp_path, 2, split="test")
    assert (train.num_records, test.num_records) == (5, 2)
    x, y = train[0]
    np.testing.assert_allclose(x[..., 0], images() / 127.5 - 1, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(y, LABELS)
    with pytest.raises(ValueError, match='`split` must be "train" or "test"'):
        load(tmp_path, 2, split="val")
    (tmp_path / "t10k-images-idx3-ubyte").unlink()
    with pytest.raises(ValueError, match="has no t10k-images-idx3-ubyte"):
        load(tmp_path, 2, split="test")


def test_it_is_a_source_like_any_other(tmp_path):
    """Order, flips and shares of processes are those of the same arrays in memory."""
    write_idx_split(tmp_path, "train", images(), LABELS, end=".gz")
    for share in range(2):
        settings = {"flip": True, "seed": 3, "steps_per_epoch": 4}
        settings |= {"process_index": share, "process_count": 2}
        of_files = load(tmp_path / "train-images-idx3-ubyte.gz", 4, **settings)
        of_arrays = load((images(), LABELS), 4, **settings)
        of_files.set_state({"epoch": 1})
        of_arrays.set_state({"epoch": 1})
        for i in range(4):
            for found, expected in zip(of_files[i], of_arrays[i], strict=True):
                np.testing.assert_array_equal(found, expected)
        assert of_files.fingerprint == of_arrays.fingerprint


@pytest.mark.slow("child processes")
def test_worker_processes_read_the_same(tmp_path):
    write_idx_split(tmp_path, "train", images(), LABELS, end=".gz")
    alone, shared = (load(tmp_path, 2, num_workers=n) for n in (0, 2))
    for i in range(2):
        for found, expected in zip(shared[i], alone[i], strict=True):
            np.testing.assert_array_equal(found, expected)
    shared.close()


def header(*sizes, code=8):
    return struct.pack(f">BBBB{len(sizes)}I", 0, 0, code, len(sizes), *sizes)


WRONG = {
    "magic": (b"\x89PNG" + bytes(40), "it is no IDX file: it begins with 89 50 4e 47"),
    "type": (header(2, 2, 2, code=13) + bytes(32), "it holds float32"),
    "dimensions": (header(8) + bytes(8), r"must have 3 or 4 dimension\(s\); it has 1"),
    "empty": (header(0, 2, 2), "must not be empty; its header says 0 x 2 x 2"),
    "nothing": (b"", "it ends after 0 bytes of its header"),
    "half a header": (header(2, 2, 2)[:9], "it ends after 5 bytes of its header"),
}


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_named(tmp_path, name, end):
    content, message = WRONG[name]
    path = tmp_path / f"x-idx3-ubyte{end}"
    path.write_bytes(gzip.compress(content) if end else content)
    with pytest.raises(ValueError, match=rf"Cannot read .*x-idx3-ubyte.*: .*{message}"):
        load(path, 2)


def test_lengths_are_held_against_the_header(tmp_path):
    whole = header(2, 2, 2) + bytes(8)
    plain, packed = tmp_path / "x-idx3-ubyte", tmp_path / "y-idx3-ubyte.gz"
    for path, content, message in (
        (plain, whole[:-1], "says 2 x 2 x 2 bytes, and 7 follow: it is cut off"),
        (plain, whole + b"0", "and 9 follow: it is too long"),
        (packed, gzip.compress(whole[:-1]), "ends after 7 bytes of the 2 x 2 x 2"),
        (packed, gzip.compress(whole + b"0"), "more than the 2 x 2 x 2 bytes"),
        (packed, gzip.compress(whole)[:-9], "end-of-stream|ends after"),
        (packed, gzip.compress(whole)[:-8] + bytes(8), "CRC"),
        (packed, whole, "Not a gzipped file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"Cannot read .*idx3-ubyte.*{message}"):
            load(path, 2)
    with pytest.raises(ValueError, match="No such file"):
        load(tmp_path / "gone-idx3-ubyte", 2)


def test_counts_of_images_and_labels_must_agree(tmp_path):
    write_idx_split(tmp_path, "train", images(), LABELS[:4])
    with pytest.raises(ValueError, match=r"5 images in .* and 4 labels in .*idx1"):
        load(tmp_path, 2)
    assert load(tmp_path, 2, labels=False).num_records == 5


@pytest.mark.parametrize("follows", [0, 2**20])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_header_takes_no_memory(tmp_path, end, follows):
    """Sizes that the content does not have; in gzip also a content much longer."""
    path = tmp_path / f"x-idx3-ubyte{end}"
    for sizes in ((2**32 - 1, 2**16, 2**16), (2**10, 2**10, 2**9)):
        content = header(*sizes) + bytes(follows)
        path.write_bytes(gzip.compress(content) if end else content)
        with pytest.raises(ValueError, match=f"Cannot read.*{sizes[0]} x"):
            _peak_below(2**23, path)


def test_gzip_is_read_as_far_as_the_header_says(tmp_path):
    path = tmp_path / "x-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(header(2, 2, 2) + bytes(2**26), compresslevel=1))
    with pytest.raises(ValueError, match="more than the 2 x 2 x 2 bytes"):
        _peak_below(2**23, path)


def _peak_below(size, path):
    tracemalloc.start()
    try:
        IdxFiles(path)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < size


def test_labels_are_found_under_the_other_spelling(tmp_path):
    write_idx_split(tmp_path, "train", np.zeros((3, 4, 4), "uint8"), np.arange(3))
    old = tmp_path / "train-images-idx3-ubyte"
    old.rename(tmp_path / "train-images.idx3-ubyte")
    dataset = load(tmp_path, 3, shuffle=False)
    np.testing.assert_array_equal(dataset[0][1], [0, 1, 2])
