"""Folders that models are made from: their files, where they are, what is refused."""

import json
import os
import sys

import huggingface_hub
import keras
import numpy as np
import pytest
from keras import ops

import keras_imm
from keras_imm.files import atomic, presets

pytestmark = pytest.mark.any_backend("folders and files")


@keras.saving.register_keras_serializable(package="test_presets")
class Sum(keras.Model):
    """The smallest model with a config and a weight."""

    def __init__(self, size=3, inner=None, **kwargs):
        super().__init__(**kwargs)
        self.size = size
        self.inner = inner
        self.w = self.add_weight(shape=(size,), initializer="ones", name="w")
        self.built = True

    def call(self, x):
        return ops.sum(x * self.w)

    def get_config(self):
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), "size": self.size, "inner": inner}

    @classmethod
    def from_config(cls, config):
        inner = keras.saving.deserialize_keras_object(config.pop("inner", None))
        return cls(inner=inner, **config)


@keras.saving.register_keras_serializable(package="test_presets")
class Scaled(Sum):
    """A subclass."""


@pytest.fixture
def folder(tmp_path):
    """A preset whose weights are 1/3, 2/3 and 1."""
    model = Sum()
    model.w.assign([1 / 3, 2 / 3, 1.0])
    presets.save(tmp_path / "sum", model, {"data": "none"}, model_card="# Sum\n")
    return tmp_path / "sum"


def weights(model):
    return ops.convert_to_numpy(model.w)


def change(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(content))


# -- Writing and reading


def test_a_preset_has_four_files(folder):
    assert sorted(os.listdir(folder)) == sorted(presets.FILENAMES)
    assert (folder / "README.md").read_text() == "# Sum\n"
    about = presets.metadata(folder)
    assert about["keras_version"] == keras.__version__
    assert about["keras_imm_version"] == keras_imm.__version__
    assert (about["parameter_count"], about["weights_dtype"]) == (3, "float16")
    assert about["data"] == "none"
    config = json.loads((folder / "config.json").read_text())
    assert config["registered_name"] == "test_presets>Sum"


def test_weights_are_rounded_to_half_precision_and_loaded_in_full(folder):
    model = presets.load(folder, Sum)
    assert model.w.dtype == "float32"
    expected = np.float16([1 / 3, 2 / 3, 1.0]).astype("float32")
    np.testing.assert_array_equal(weights(model), expected)
    new = presets.load(str(folder), Sum, load_weights=False)
    np.testing.assert_array_equal(weights(new), np.ones(3))


def test_full_precision_can_be_kept(folder):
    model = Sum()
    model.w.assign([1 / 3, 1e6, 0.0])
    presets.save(folder, model, {}, "float32")
    np.testing.assert_array_equal(weights(presets.load(folder, Sum)), weights(model))
    assert presets.metadata(folder)["weights_dtype"] == "float32"


@pytest.mark.parametrize("value", [65520.0, -1e5, np.inf, np.nan])
def test_a_weight_that_does_not_fit_is_named_and_nothing_written(folder, value):
    model = Sum(name="larger")
    model.w.assign([0.0, 65504.0, 0.0])  # the largest that fits
    presets.save(folder, model, {})
    before = presets.metadata(folder)
    model.w.assign([0.0, value, 0.0])
    with pytest.raises(
        ValueError, match=r"Weight '.*w' does not fit.*'float16'.*65504"
    ):
        presets.save(folder, model, {})
    assert presets.metadata(folder) == before


def test_what_a_model_was_compiled_with_is_left_out(tmp_path):
    model = Sum()
    model.compile("adam", "mse")
    presets.save(tmp_path / "a", model, {})
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert "compile_config" not in config
    assert not presets.load(tmp_path / "a", Sum).compiled


@pytest.mark.parametrize("description", [{"a": {1, 2}}, {"a": np.nan}, {"a": object()}])
def test_a_description_is_json(tmp_path, description):
    with pytest.raises(ValueError, match="`description` must be what JSON can hold"):
        presets.save(tmp_path / "a", Sum(), description)
    assert not list(tmp_path.iterdir())


# -- Whole or not at all


class Killed(BaseException):
    pass


@pytest.mark.parametrize("cut_at", ["narrow", "write_text"])
def test_a_cut_save_leaves_no_half_preset(folder, monkeypatch, cut_at):
    def die(*_):
        raise Killed

    monkeypatch.setattr(presets, cut_at, die)
    for place in (folder, folder.with_name("new")):
        with pytest.raises(Killed):
            presets.save(place, Sum(size=4), {}, model_card="new")
    assert [p.name for p in folder.parent.iterdir()] == ["sum"]
    assert presets.load(folder, Sum).size == 3
    assert (folder / "README.md").read_text() == "# Sum\n"


def test_what_killed_processes_left_is_removed(folder):
    with atomic.replaced_directory(folder) as unfinished:
        ended = unfinished.name.replace(f"@{os.getpid()}@", "@999999999@")
        (folder.parent / ended).mkdir()
        presets.save(folder, Sum(size=4), {})
        assert unfinished.exists() and not (folder.parent / ended).exists()
        presets.save(unfinished, Sum(size=5), {})
    assert presets.load(folder, Sum).size == 5


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_preset_is_replaced_as_a_whole(folder, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    presets.save(folder, Sum(size=4), {})
    assert presets.load(folder, Sum).size == 4
    assert not (folder / "README.md").exists()  # it told of other weights
    assert [p.name for p in folder.parent.iterdir()] == ["sum"]


@pytest.mark.parametrize("foreign", ["notes.txt", ".git", "model.keras"])
def test_nothing_else_is_removed(folder, foreign):
    (folder / foreign).write_text("mine")
    before = sorted(os.listdir(folder))
    with pytest.raises(ValueError, match=rf"`folder` must be new.*'{foreign}'"):
        presets.save(folder, Sum(), {})
    assert sorted(os.listdir(folder)) == before
    alone = folder.with_name("alone")
    alone.mkdir()
    (alone / "README.md").write_text("of something else")
    for place in (alone, alone / "README.md"):
        with pytest.raises(ValueError, match=r"`folder` must be new.*'README\.md'"):
            presets.save(place, Sum(), {})


def test_an_empty_folder_is_taken_and_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "a" / "b"):
        presets.save(place, Sum(), {})
        assert presets.load(place, Sum).size == 3


# -- What a config may make


def test_the_class_is_the_one_asked_for_or_a_subclass(tmp_path, folder):
    presets.save(tmp_path / "scaled", Scaled(), {})
    assert type(presets.load(tmp_path / "scaled", Sum)) is Scaled
    expected = r"must make a Scaled.*registered_name='test_presets>Sum'"
    with pytest.raises(ValueError, match=expected):
        presets.load(folder, Scaled)


@pytest.mark.parametrize(
    "name", [None, 3, ["a"], "test_presets>Missing", "keras_imm>Laplace", "os.system"]
)
def test_no_other_class_is_made(folder, name):
    change(folder / "config.json", registered_name=name)
    with pytest.raises(ValueError, match=rf"Preset '.*{folder.name}' must make a Sum"):
        presets.load(folder, Sum)


def test_the_registered_name_alone_says_what_is_made(folder):
    """Not the module and class beside it, nor how a foreign config would compile."""
    change(
        folder / "config.json",
        module="os",
        class_name="__lambda__",
        compile_config={"optimizer": "adam"},
    )
    model = presets.load(folder, Sum)
    assert type(model) is Sum and not model.compiled


def test_code_in_a_config_does_not_run(folder):
    layer = keras.layers.Lambda(lambda x: x)
    inner = keras.saving.serialize_keras_object(layer)
    config = json.loads((folder / "config.json").read_text())
    config["config"]["inner"] = inner
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"makes no Sum: ValueError: .*ambda"):
        presets.load(folder, Sum)


def test_a_config_that_does_not_fit_its_class_is_told_briefly(folder):
    config = json.loads((folder / "config.json").read_text())
    config["config"]["shape"] = "x" * 10_000
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"makes no Sum: \w+Error: .*shape") as error:
        presets.load(folder, Sum)
    assert len(str(error.value)) < 1000


def test_a_model_too_large_for_the_memory_is_no_fault_of_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    config["config"]["size"] = 10**14  # more than addresses reach
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Exception, match=r"(?i)memory|OOM") as caught:
        presets.load(folder, Sum)
    assert not isinstance(caught.value, ValueError)


class OutOfMemoryError(RuntimeError):
    """Of the name of PyTorch's."""


class ArrayMemoryError(MemoryError):
    """NumPy's is a subclass too."""


@pytest.mark.parametrize("kind", [MemoryError, ArrayMemoryError, OutOfMemoryError])
def test_errors_of_memory_are_raised_as_they_are(folder, monkeypatch, kind):
    error = kind("too little")

    def fail(config):
        raise error

    monkeypatch.setattr(Sum, "from_config", fail)
    with pytest.raises(kind) as caught:
        presets.load(folder, Sum)
    assert caught.value is error


def test_weights_of_another_config_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["config"]["size"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError):  # of Keras; FlowMapModel names the file
        presets.load(folder, Sum)


# -- What is no preset


@pytest.mark.parametrize("name", ["config.json", "metadata.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no preset: it has no {}"),
        (b"{", "{} of preset .* is not JSON"),
        (b"\xff\xfe{", "{} of preset .* is not JSON"),
        (b"[" * 100_000, "{} of preset .* is not JSON"),
        (b"[1]", "{} of preset .* is not a JSON object"),
    ],
)
def test_damaged_files_are_named(folder, name, content, message):
    path = folder / name
    path.unlink() if content is None else path.write_bytes(content)
    read = (
        (lambda: presets.load(folder, Sum))
        if name == "config.json"
        else (lambda: presets.metadata(folder))
    )
    with pytest.raises(ValueError, match=message.format(name)):
        read()
    with pytest.raises(ValueError, match=message.format(name)):
        presets.upload_preset("hf://user/name", folder)


def test_without_weights(folder):
    (folder / "model.weights.h5").unlink()
    with pytest.raises(ValueError, match=r"no weights.*load_weights=False"):
        presets.load(folder, Sum)
    assert presets.load(folder, Sum, load_weights=False).size == 3


# -- Names that come with the library


@pytest.fixture
def built_in(folder, monkeypatch):
    """The folder's parent holds what comes with the library."""
    monkeypatch.setattr(presets, "BUILT_IN", folder.parent)
    (folder.parent / "__pycache__").mkdir()
    return folder.parent


def test_a_name_stands_for_a_folder_in_the_package(built_in, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    assert presets.names() == ["sum"]
    assert presets.load("sum", Sum).size == 3
    assert presets.metadata("sum")["data"] == "none"


@pytest.mark.parametrize(
    "preset", ["nothing", "", "__pycache__", "sum/", "../sum", "gs://a/b", 3, None]
)
def test_what_is_unknown_lists_the_names(built_in, tmp_path, monkeypatch, preset):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    if preset == "../sum":  # a path from here, not from the package
        assert presets.load(preset, Sum).size == 3
        return
    with pytest.raises(
        ValueError, match=r"library \('sum'\), the path.*hf://user"
    ) as e:
        presets.load(preset, Sum)
    assert f"preset={preset!r}" in str(e.value)


def test_without_any_name(monkeypatch, tmp_path):
    monkeypatch.setattr(presets, "BUILT_IN", tmp_path / "missing")
    assert presets.names() == []
    with pytest.raises(ValueError, match=r"library \(none\)"):
        presets.load("sum", Sum)


# -- The hub


@pytest.fixture
def downloads(folder, monkeypatch):
    """What is asked of the hub, which has the folder as user/name."""
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, *allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def test_only_what_is_needed_is_fetched(downloads):
    assert presets.load("hf://user/name", Sum).size == 3
    presets.load("hf://user/name", Sum, load_weights=False)
    presets.metadata("hf://user/name")
    fetched = "config.json", "metadata.json", "model.weights.h5"
    assert downloads == [
        ("user/name", *fetched),
        ("user/name", *fetched[:2]),
        ("user/name", "metadata.json"),
    ]


@pytest.mark.parametrize(
    "uri", ["hf://name", "hf://", "hf://a/b/c", "hf://../b", "hf://a/b\n", "hf://a b/c"]
)
def test_addresses_of_another_form_are_not_asked_for(folder, downloads, uri):
    with pytest.raises(
        ValueError, match="`preset` must be of the form 'hf://user/name'"
    ):
        presets.load(uri, Sum)
    with pytest.raises(ValueError, match="`uri` must be of the form 'hf://user/name'"):
        presets.upload_preset(uri, folder)
    assert not downloads


@pytest.mark.parametrize("uri", ["user/name", "kaggle://user/name", None])
def test_uploads_go_to_the_hub_alone(folder, uri):
    with pytest.raises(ValueError, match=r"`uri` must be 'hf://user/name'"):
        presets.upload_preset(uri, folder)


def test_no_connection_is_an_error_of_the_system(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    expected = r"Preset 'hf://user/name' is fetched.*from_preset\('name'\)"
    with pytest.raises(OSError, match=expected):
        presets.load("hf://user/name", Sum)


class Api:
    """What is uploaded to the hub."""

    def __init__(self):
        self.uploaded = []

    def create_repo(self, repository, exist_ok):
        self.repository = repository

    def upload_folder(self, repo_id, folder_path, allow_patterns):
        assert repo_id == self.repository
        self.uploaded.append((folder_path, *allow_patterns))


def test_a_preset_is_uploaded_and_nothing_beside_it(folder, monkeypatch):
    hub = Api()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    presets.upload_preset("hf://user/name", folder)
    assert hub.repository == "user/name"
    assert hub.uploaded == [(str(folder), *presets.FILENAMES)]


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_a_folder_without_weights_is_not_uploaded(folder, monkeypatch, content):
    monkeypatch.setattr(huggingface_hub, "HfApi", pytest.fail)
    path = folder / "model.weights.h5"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=r"has no weights in model\.weights\.h5"):
        presets.upload_preset("hf://user/name", folder)
