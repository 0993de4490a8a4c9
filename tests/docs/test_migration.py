"""docs/migration.md names paths that exist, and paths that are gone."""

import functools
import importlib
import inspect
import pathlib
import re
import zipfile

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm.files import pickled_arrays
from keras_imm.flow_map import FlowMap, Network
from keras_imm.objectives import Batch, MomentMatching

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "migration.md"
ROWS = re.findall(r"^\| (`.*?) \| (`.*?) \|$", PAGE.read_text(), re.MULTILINE)
PATH = re.compile(r"`(keras_imm(?:\.\w+)+)`")
BACKENDS = ("jax", "tensorflow", "torch")
STILL_WORKS = "keras_imm.objective"


def found(path):
    """The object of a dotted path."""
    *parts, last = path.split(".")
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not path.startswith(error.name):
            raise
    return getattr(found(".".join(parts)), last)


def of_this_backend(path):
    parts = set(path.split("."))
    return keras.backend.backend() in parts or not parts & set(BACKENDS)


def test_the_table_was_read():
    assert len(ROWS) == PAGE.read_text().count("\n| `") > 10


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace("`", ""))
def test_new_paths_import(row):
    paths = PATH.findall(row[1])
    assert paths
    for path in filter(of_this_backend, paths):
        assert found(path) is not None


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].replace("`", ""))
def test_old_paths_are_gone_or_said_to_work(row):
    old, now = row
    (path, *_) = PATH.findall(old)
    if "(function)" in old:
        assert not callable(found(path))
    elif "still works" in now:
        assert path == STILL_WORKS
        for name in re.findall(r"`(\w+)`", now):
            assert hasattr(found(path), name)
    else:
        try:
            at_old = found(path)
        except (ModuleNotFoundError, AttributeError):
            return
        # Imported there, as it happens.
        assert at_old is found(PATH.findall(now)[0])


def test_names_elsewhere_on_the_page_exist():
    _, text = PAGE.read_text().split("## Sampling")
    for path in PATH.findall(text):
        found(path)


def arguments(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_signatures_are_as_the_page_says():
    model = keras_imm.FlowMapModel
    defaults = inspect.signature(model.generate).parameters
    for name in ("num_steps", "sampler", "time_grid"):
        assert defaults[name].default is None
    config = MomentMatching().get_config()
    assert config["label_dropout"] == 0.1
    assert set(config) - {"total_steps"} == {
        *("time_mapping", "kernel", "weighting", "group_size"),
        *("label_dropout", "drop_target_labels"),
        *("times", "flow_matching_share"),
    }
    draw = ["network", "x", "labels", "seed", "progress", "training"]
    assert arguments(MomentMatching.draw) == draw
    for method in (MomentMatching.noised, MomentMatching.target, MomentMatching.loss):
        assert arguments(method)[0] == "network"
    earlier = arguments(keras_imm.time_mappings.TimeMapping.earlier)
    assert earlier[:3] == ["schedule", "s", "t"]
    assert arguments(keras_imm.kernels.Kernel.pairs) == ["x", "y", "scale"]
    assert "augmentation_labels" in Batch._fields
    assert "augmentation_labels" not in keras_imm.objective.Particles._fields
    published = keras_imm.checkpoints.hub.Published
    assert published._fields == ("filenames", "recipe")
    assert isinstance(keras_imm.samplers.SAMPLERS, dict)


def test_methods_are_gone_or_where_the_page_says():
    model = keras_imm.IMM(small_dit())
    gone = ("draw_particles", "micro_batch", "compute_target", "compute_objective")
    for name in (*gone, "evaluate_objective", "update_logs", "_weights"):
        assert not hasattr(model, name)
        assert f"`{name}`" in PAGE.read_text()
    for name in ("draw", "micro_batch", "target", "loss", "evaluate"):
        assert callable(getattr(model.batch_loss(), name))
    assert isinstance(model.flow, FlowMap)
    x = np.zeros((4, 4, 4, 1), "float32")
    particles = model.objective.draw(
        Network(model.flow), x, np.zeros(4, "int32"), keras.random.SeedGenerator(0)
    )
    assert tuple(particles.t.shape) == (4,)


def test_an_explicit_number_of_steps_must_fit_a_list():
    model = keras_imm.IMM(small_dit())
    with pytest.raises(ValueError, match=r"makes 3 steps. Received: num_steps=2"):
        model.generate([0], num_steps=2, time_grid=[2.0, 1.0])
    assert model.generate([0], time_grid=[2.0, 1.0]).shape == (1, 4, 4, 1)


def test_walk_samples_outside_of_a_model():
    flow = FlowMap(small_dit())
    flow.build((4, 4, 1))
    step = functools.partial(keras_imm.samplers.Pushforward().step, Network(flow))
    x = np.ones((2, 4, 4, 1), "float32")
    times = np.array([0.9, 0.4, 0.0], "float32")
    samples = keras_imm.samplers.walk(step, x, times, lambda i: None)
    expected = flow(flow(x, 0.9, 0.4), 0.4, 0.0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(samples), ops.convert_to_numpy(expected), rtol=1e-5
    )


@pytest.mark.one_backend("reads files with NumPy alone")
def test_files_that_are_refused(tmp_path):
    import torch

    path = tmp_path / "saved.pt"
    torch.save({"x": torch.ones(1).expand(3)}, path)
    with pytest.raises(ValueError, match="does not fit its 1 elements"):
        pickled_arrays.load_torch(path)
    torch.save({"x": torch.ones(3)}, path)
    x = pickled_arrays.load_torch(path)["x"]
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 0
    np.testing.assert_array_equal(x, np.ones(3))
    compressed = tmp_path / "compressed.pt"
    with (
        zipfile.ZipFile(path) as old,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(ValueError, match="more memory than disk"):
        pickled_arrays.load_torch(compressed)
