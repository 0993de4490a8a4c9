"""Files and folders are there whole or not at all."""

import errno
import json
import os
import pathlib
import sys

import pytest

from keras_imm.files import atomic


class Killed(Exception):
    pass


def test_a_failed_body_leaves_nothing(tmp_path):
    with pytest.raises(Killed), atomic.atomic_directory(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a").exists()
        raise Killed
    assert not list(tmp_path.iterdir())


def test_a_whole_folder_appears_and_is_not_overwritten(tmp_path):
    for text in ("1", "2"):
        try:
            with atomic.atomic_directory(tmp_path / "a") as folder:
                (folder / "sub").mkdir()
                (folder / "sub" / "x").write_text(text)
        except FileExistsError:
            assert text == "2"
    assert (tmp_path / "a" / "sub" / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_folders_of_running_processes_can_be_left_alone(tmp_path):
    with atomic.atomic_directory(tmp_path / "a") as folder:
        ended = folder.name.replace(f"@{os.getpid()}@", "@999999999@")
        (tmp_path / ended).mkdir()
        atomic.remove_unfinished(tmp_path, ended=True)
        assert folder.exists() and not (tmp_path / ended).exists()
    atomic.remove_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_file_appears_in_the_place_of_another_when_it_is_complete(tmp_path):
    path = tmp_path / "a"
    path.write_text("1")
    with pytest.raises(Killed), atomic.atomic_file(path) as unfinished:
        unfinished.write_text("2")
        raise Killed
    assert path.read_text() == "1"
    with atomic.atomic_file(path) as unfinished:
        unfinished.write_text("2")
        assert path.read_text() == "1"
    assert path.read_text() == "2" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    synchronise, rename = atomic.synchronise, pathlib.Path.rename
    monkeypatch.setattr(
        atomic, "synchronise", lambda p: (order.append(str(p)), synchronise(p))
    )
    monkeypatch.setattr(
        pathlib.Path, "rename", lambda p, to: (order.append("rename"), rename(p, to))
    )
    with atomic.atomic_directory(tmp_path / "a") as folder:
        (folder / "x").write_text("1")
    assert order == [str(folder / "x"), str(folder), "rename", str(tmp_path)]


def test_temporary_files_keep_the_suffixes(tmp_path):
    paths = tmp_path / "best.weights.h5", tmp_path / "plain"
    with atomic.atomic_files(*paths) as (weights, plain):
        assert weights.name.endswith(".weights.h5") and "." not in plain.name[1:]
        assert {path.parent for path in (weights, plain)} == {tmp_path}
        weights.write_text("1")
        plain.write_text("2")
        assert not any(path.exists() for path in paths)
    assert [path.read_text() for path in paths] == ["1", "2"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_of_several_files_none_is_replaced_if_one_is_not_complete(tmp_path):
    paths = tmp_path / "a", tmp_path / "b"
    for path in paths:
        path.write_text("old")
    with pytest.raises(FileNotFoundError), atomic.atomic_files(*paths) as (first, _):
        first.write_text("new")
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space"), r"No space: '.*model\.keras'"),
        (OSError("9 requested and 2 written"), r"write .*model\.keras: 9 requested"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), "No such file: 'x'"),
    ],
)
def test_errors_name_the_file(tmp_path, error, message):
    failing = atomic.atomic_file(tmp_path / "model.keras")
    with pytest.raises(OSError, match=message), failing:
        raise error
    assert not list(tmp_path.iterdir())


def test_text_and_json(tmp_path):
    atomic.write_text(tmp_path / "a", "\u00e9\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa9\n"
    atomic.write_json(tmp_path / "a", {"b": [1, None]})
    assert json.loads((tmp_path / "a").read_text()) == {"b": [1, None]}
    with pytest.raises(TypeError):
        atomic.write_json(tmp_path / "a", {"b": object()})
    assert json.loads((tmp_path / "a").read_text()) == {"b": [1, None]}


@pytest.mark.parametrize("has_links", [True, False])
def test_the_first_of_several_processes_writes(tmp_path, monkeypatch, has_links):
    def no_links(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    atomic.write_json_once(tmp_path / "a", 1)
    assert json.loads((tmp_path / "a").read_text()) == 1
    if has_links:
        atomic.write_json_once(tmp_path / "a", 2)
        assert json.loads((tmp_path / "a").read_text()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_left_of_files_is_removed_by_their_stem(tmp_path):
    with atomic.atomic_file(tmp_path / "shard-1.npy") as unfinished:
        for path in ("shard-1.npy", "shard-1.json", "shard-10.npy", "shard-2.npy"):
            name = unfinished.name.replace("-shard-1-", f"-{path.split('.')[0]}-")
            (tmp_path / name).with_suffix(f".{path.split('.')[1]}").touch()
        atomic.remove_unfinished(tmp_path, stem="shard-1")
        left = sorted(path.name.split("-")[2] for path in tmp_path.iterdir())
        assert left == ["10", "2"]
        unfinished.touch()
    atomic.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["shard-1.npy"]


def test_a_stem_is_no_pattern(tmp_path):
    (tmp_path / "model[1]").mkdir()
    with pytest.raises(RuntimeError), atomic.atomic_file(tmp_path / "a[1].npy") as path:
        atomic.remove_unfinished(tmp_path, stem="a[1]")
        path.touch()
        atomic.remove_unfinished(tmp_path, stem="a1")
        assert path.exists()
        atomic.remove_unfinished(tmp_path, stem="a[1]")
        assert not path.exists()
        raise RuntimeError
    assert [one.name for one in tmp_path.iterdir()] == ["model[1]"]


def test_a_removed_folder_is_whole_until_it_is_gone(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    seen = []
    rmtree = atomic.shutil.rmtree
    monkeypatch.setattr(
        atomic.shutil,
        "rmtree",
        lambda path, **options: (
            seen.append((tmp_path / "a").exists() or not (path / "x").exists()),
            rmtree(path, **options),
        ),
    )
    atomic.remove_directory(tmp_path / "a")
    assert seen == [False] and not list(tmp_path.iterdir())


def written(path):
    return {p.name: p.read_text() for p in path.iterdir()}


@pytest.fixture(params=["exchanged", "renamed in turn"])
def replaced(request, monkeypatch):
    """`replaced_directory` on systems that can exchange names and those that cannot."""
    if request.param == "renamed in turn":
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    return atomic.replaced_directory


def test_a_whole_folder_takes_the_place_of_another(replaced, tmp_path):
    for name in ("x", "y"):
        with replaced(tmp_path / "a") as folder:
            (folder / name).write_text(name)
            assert name == "x" or written(tmp_path / "a") == {"x": "x"}
    assert written(tmp_path / "a") == {"y": "y"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_stays_if_what_would_replace_it_fails(replaced, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    with pytest.raises(Killed), replaced(tmp_path / "a") as folder:
        (folder / "x").write_text("new")
        raise Killed
    assert written(tmp_path / "a") == {"x": "old"}
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_comes_back_if_its_place_cannot_be_taken(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    rename = pathlib.Path.rename
    fails = [False, True, False]  # aside, into its place, back

    def failing(path, target):
        if fails.pop(0):
            raise OSError(errno.EIO, "broken")
        return rename(path, target)

    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    monkeypatch.setattr(pathlib.Path, "rename", failing)
    with (
        pytest.raises(OSError, match="broken"),
        atomic.replaced_directory(tmp_path / "a") as folder,
    ):
        (folder / "x").write_text("new")
    assert written(tmp_path / "a") == {"x": "old"} and not fails
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged on Linux")
def test_names_are_exchanged_in_one_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    assert atomic._exchange(tmp_path / "a", tmp_path / "b")
    assert written(tmp_path / "a") == {"x": "b"} and written(tmp_path / "b") == {
        "x": "a"
    }
    assert not atomic._exchange(tmp_path / "a", tmp_path / "missing")


def test_folders_that_were_made_go_if_the_body_fails_unless_they_are_used(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "b" / "c" / "d"
    for kept in (False, True):
        with pytest.raises(Killed), atomic.made_folder(path):
            assert path.is_dir()
            if kept:
                (tmp_path / "a" / "b" / "x").write_text("1")
            raise Killed
        left = {str(found.relative_to(tmp_path)) for found in tmp_path.rglob("*")}
        assert left == ({"a", "a/b", "a/b/x"} if kept else {"a"})
    with atomic.made_folder(path):
        pass
    assert path.is_dir()
    with pytest.raises(FileExistsError), atomic.made_folder(tmp_path / "a" / "b" / "x"):
        raise Killed
    assert (tmp_path / "a" / "b" / "x").read_text() == "1"
