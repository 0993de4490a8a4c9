"""Downloads, and what is said where there is no connection."""

import functools
import re
import sys

import huggingface_hub.errors
import keras
import pytest

from keras_imm.files.downloads import (
    fetch_folder_from_hub,
    fetch_from_hub,
    fetch_url,
    upload_folder_to_hub,
)

URL = "https://example.org/files/weights.bin"
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of b"abc"


def from_hub(*filenames):
    return fetch_from_hub(
        "user/name", filenames, what="Model 'x'", extra="hub", usage="load({})"
    )


def from_url(checksum):
    return fetch_url(
        URL, checksum, what="Model 'x'", usage="load({})", cache_subdir="models"
    )


class Missing(huggingface_hub.errors.RemoteEntryNotFoundError):
    def __init__(self):
        Exception.__init__(self, "404")


@pytest.fixture
def hub(monkeypatch):
    """What the hub has; the names that were asked for."""
    there, asked = set(), []

    def download(repository, filename):
        asked.append((repository, filename))
        if filename not in there:
            raise Missing
        return f"/cache/{filename}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return there, asked


def test_the_first_name_that_is_there_is_fetched(hub):
    there, asked = hub
    there |= {"b.pkl", "c.pkl"}
    assert str(from_hub("a.pkl", "b.pkl", "c.pkl")) == "/cache/b.pkl"
    assert asked == [("user/name", "a.pkl"), ("user/name", "b.pkl")]


def test_names_that_are_not_there_are_listed(hub):
    by_hand = (
        r"(?s)Model 'x' cannot.*user/name has none of a\.pkl, b\.pkl\.\nWithout a "
        r"connection: download https://huggingface\.co/user/name/resolve/main/a\.pkl "
        r"elsewhere, .* give its path: load\('a\.pkl'\)\."
    )
    with pytest.raises(OSError, match=by_hand):
        from_hub("a.pkl", "b.pkl")


def test_without_a_connection_the_hub_is_asked_once(monkeypatch):
    asked = []

    def download(repository, filename):
        asked.append(filename)
        raise RuntimeError("no route to host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    expected = r"Model 'x' cannot be fetched: no route to host\nWithout .*/a\.pkl"
    with pytest.raises(OSError, match=expected):
        from_hub("a.pkl", "b.pkl")
    assert asked == ["a.pkl"]


def test_without_the_hubs_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    expected = r'`pip install "keras_imm\[hub\]"`\. Without.*load\(\'a\.pkl\'\)'
    with pytest.raises(OSError, match=expected):
        from_hub("a.pkl")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A file that Keras fetches; what it was asked for."""
    asked = []

    def get_file(**options):
        asked.append(options)
        return str(tmp_path / "weights.bin")

    monkeypatch.setattr(keras.utils, "get_file", get_file)
    return tmp_path / "weights.bin", asked


def test_keras_checks_a_whole_checksum(cache):
    path, asked = cache
    assert from_url(ABC) == path
    assert asked == [{"origin": URL, "cache_subdir": "models", "file_hash": ABC}]


def test_the_beginning_of_a_checksum_is_checked(cache):
    path, asked = cache
    path.write_bytes(b"abc")
    assert from_url(ABC[:8]) == path
    assert asked == [{"origin": URL, "cache_subdir": "models"}]
    path.write_bytes(b"abd")
    expected = rf"{re.escape(str(path))} is damaged.*with {ABC[:8]}\. Delete.*{URL}"
    with pytest.raises(OSError, match=expected):
        from_url(ABC[:8])


def test_a_url_that_cannot_be_reached_is_named(monkeypatch):
    def fail(**_):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", fail)
    expected = rf"Model 'x' cannot.*failure\n.*download {URL} .*load\('weights\.bin'\)"
    with pytest.raises(OSError, match=expected):
        from_url(ABC)


def test_a_file_is_fetched_by_keras_itself(tmp_path, monkeypatch):
    """From the disk, to a cache of the test's own."""
    cached = functools.partial(keras.utils.get_file, cache_dir=str(tmp_path))
    monkeypatch.setattr(keras.utils, "get_file", cached)
    (tmp_path / "weights.bin").write_bytes(b"abc")
    url = (tmp_path / "weights.bin").as_uri()
    path = fetch_url(url, ABC, what="x", usage="load({})", cache_subdir="m")
    assert path.read_bytes() == b"abc" and path != tmp_path / "weights.bin"
    (tmp_path / "weights.bin").write_bytes(b"abd")
    path.unlink()
    with pytest.raises(OSError, match=r"x cannot be fetched(.|\n)*Without a conn"):
        fetch_url(url, ABC, what="x", usage="load({})", cache_subdir="m")


def folder_from_hub(*filenames):
    return fetch_folder_from_hub(
        "user/name", filenames, what="Model 'x'", extra="hub", usage="load({})"
    )


def test_files_of_a_folder_are_asked_for_together(monkeypatch):
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, allow_patterns))
        return "/cache/commit"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert str(folder_from_hub("a.json", "b.h5")) == "/cache/commit"
    assert asked == [("user/name", ["a.json", "b.h5"])]


def test_without_a_connection_a_folder_can_be_fetched_by_hand(monkeypatch):
    def download(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    expected = (
        r"Model 'x' cannot be fetched: no route to host\nWithout a connection: "
        r"download a\.json, b\.h5 of https://huggingface\.co/user/name elsewhere.*"
        r"give its path: load\('name'\)\."
    )
    with pytest.raises(OSError, match=expected):
        folder_from_hub("a.json", "b.h5")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OSError, match=r'`pip install "keras_imm\[hub\]"`\. Without'):
        folder_from_hub("a.json")


class Api:
    """What the hub was asked; creating or uploading may fail."""

    def __init__(self, fails=None):
        self.asked, self.fails = [], fails

    def create_repo(self, repository, exist_ok):
        self._ask("create", repository, exist_ok)

    def upload_folder(self, repo_id, folder_path, allow_patterns):
        self._ask("upload", repo_id, folder_path, allow_patterns)

    def _ask(self, what, *arguments):
        self.asked.append((what, *arguments))
        if what == self.fails:
            raise RuntimeError(f"403: may not {what}")


def test_an_upload_makes_the_repository_first(monkeypatch, tmp_path):
    hub = Api()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    upload_folder_to_hub("user/name", tmp_path, ("a", "b"), extra="hub")
    assert hub.asked == [
        ("create", "user/name", True),
        ("upload", "user/name", str(tmp_path), ["a", "b"]),
    ]


@pytest.mark.parametrize("step", ["create", "upload"])
def test_an_upload_that_fails_is_told(monkeypatch, tmp_path, step):
    hub = Api(fails=step)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    expected = rf"cannot be uploaded to user/name: 403: may not {step}\n`hf auth login`"
    with pytest.raises(OSError, match=expected):
        upload_folder_to_hub("user/name", tmp_path, ("a",), extra="hub")
    assert hub.asked[-1][0] == step


def test_an_upload_without_the_hubs_library_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(OSError, match=r'`pip install "keras_imm\[hub\]"`\.$'):
        upload_folder_to_hub("user/name", tmp_path, ("a",), extra="hub")
