"""Every block of docs/extending.md runs, and what it defines is what it says."""

import pathlib
import re
import sys
import types

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.saving.object_registration import GLOBAL_CUSTOM_OBJECTS

from keras_imm import schedules
from keras_imm.samplers import Pushforward, Restart

pytestmark = [
    pytest.mark.any_backend("what the page shows is tested on each"),
    pytest.mark.slow("trains what the page shows"),
]

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "extending.md"
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def sections():
    """The code of each section by its heading; "" is what stands before the first."""
    start, *rest = HEADING.split(PAGE.read_text())
    texts = {"": start, **dict(zip(rest[::2], rest[1::2], strict=True))}
    return {heading: BLOCK.findall(text) for heading, text in texts.items()}


SECTIONS = sections()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the blocks of a section; yields what they leave, block by block."""
    monkeypatch.chdir(tmp_path)
    # A module, in which the classes of a saved model are found again.
    module = types.ModuleType("extending_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    registered = dict(GLOBAL_CUSTOM_OBJECTS)

    def blocks(heading):
        for code in SECTIONS[""] + SECTIONS[heading]:
            exec(compile(code, f"{PAGE.name}: {heading}", "exec"), vars(module))
            yield vars(module)

    yield blocks
    GLOBAL_CUSTOM_OBJECTS.clear()
    GLOBAL_CUSTOM_OBJECTS.update(registered)


def check_samples(names):
    assert names["samples"].shape == (3, 4, 4, 1)
    assert np.all(np.isfinite(names["samples"]))
    assert np.std(names["samples"]) > 0


def check_trained(names, steps=2):
    """A model that was trained, saved, loaded and sampled."""
    assert names["model"].optimizer.iterations == steps
    check_samples(names)


def pairs(kernel, x, y, scale):
    return ops.convert_to_numpy(kernel(x, y, scale))


def test_each_piece_has_a_section():
    pieces = {
        *("A kernel", "A time mapping", "An objective", "A sampler", "A backbone"),
        "A metric",
    }
    assert set(SECTIONS) == {"", *pieces}
    assert all(SECTIONS.values())


def test_a_kernel(run):
    x, y = np.random.default_rng(0).standard_normal((2, 3, 5))
    distance = np.square(x[:, None] - y[None]).sum(-1)
    expected = {
        "InverseMultiquadric": 1 / np.sqrt(1 + 4 * distance / 5),
        "Polynomial": (x @ y.T / 5 + 1) ** 2,
    }
    blocks = run("A kernel")
    next(blocks)
    for (name, values), names in zip(expected.items(), blocks, strict=True):
        check_trained(names)
        kernel = names["model"].kernel
        assert type(kernel) is names[name]
        np.testing.assert_allclose(pairs(kernel, x, y, 2.0), values, rtol=1e-6)


def test_a_time_mapping(run):
    *_, names = run("A time mapping")
    check_trained(names)
    mapping = names["model"].time_mapping
    assert type(mapping) is names["GapFraction"] and mapping.k == 3
    s, t = np.array([0.0, 0.2, 0.7]), np.array([0.8, 1.0, 0.7])
    r = ops.convert_to_numpy(mapping(schedules.FlowMatching(), s, t, 0.0, 1.0))
    np.testing.assert_allclose(r, [0.7, 0.9, 0.7], rtol=1e-6)


def test_an_objective(run):
    *_, names = run("An objective")
    check_trained(names, steps=4)
    history, model = names["history"].history, names["model"]
    assert type(model.objective) is names["Consistency"]
    assert model.objective.gap == 0.25 and model.objective.total_steps == 4
    # Uniform times fall short of half the range by little; gap 0.25, then nearer.
    assert 0.25 * 0.994 > history["gap"][0] > history["gap"][1] > 0
    weights = [ops.convert_to_numpy(v) for v in model.backbone.trainable_variables]
    averages = [ops.convert_to_numpy(v) for v in model.averaged_weights]
    assert [a.shape for a in averages] == [w.shape for w in weights]
    assert any(np.any(a != w) for a, w in zip(averages, weights, strict=True))

    # With a network that gives 0, f_{0,t}(x_t) is x_t.
    for v in model.backbone.trainable_variables:
        v.assign(ops.zeros_like(v.value))
    batch_loss = model.batch_loss()
    x = ops.convert_to_tensor(names["images"][:8])
    data = (x, ops.convert_to_tensor(names["labels"][:8].astype("int32")))
    batch = batch_loss.draw(data, None)
    p = batch.particles
    t, r = (ops.convert_to_numpy(v) for v in (p.t, p.r))
    np.testing.assert_allclose(r, t * (1 - 0.25 * 0.1), rtol=1e-6)  # at the end
    target = batch_loss.target(batch, None)
    loss, others = batch_loss.loss(batch, target, None)
    x_t, x_r = (ops.convert_to_numpy(v).astype("float64") for v in (p.x_t, p.x_r))
    assert float(ops.convert_to_numpy(loss)) == pytest.approx(
        np.square(x_t - x_r).mean(), rel=1e-5
    )
    assert float(ops.convert_to_numpy(others["gap"])) == pytest.approx(
        np.mean(t - r), rel=1e-5
    )


def test_a_sampler(run, tmp_path):
    *_, names = run("A sampler")
    check_samples(names)
    model, gamma = names["model"], names["Gamma"]
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    draws = rng.standard_normal((4, 3, 4, 4, 1)).astype("float32")

    def sample(sampler, noise=draws):
        return model.generate([0, 1, 2], num_steps=4, sampler=sampler, noise=noise)

    # Its ends are the two samplers of the paper.
    kwargs = {"rtol": 1e-4, "atol": 1e-5}
    pushed = sample(Pushforward(), draws[0])
    np.testing.assert_allclose(sample(gamma(0.0)), pushed, **kwargs)
    np.testing.assert_allclose(sample(gamma(1.0)), sample(Restart()), **kwargs)
    between = sample(gamma(0.5))
    assert np.abs(between - pushed).max() > 1e-2
    back = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(gamma(0.5))
    )
    np.testing.assert_array_equal(sample(back), between)
    one = model.generate([0], num_steps=1, sampler=gamma(), noise=draws[0, :1])
    expected = model.generate([0], num_steps=1, noise=draws[0, :1])
    np.testing.assert_allclose(one, expected, **kwargs)


def test_a_backbone(run):
    *_, names = run("A backbone")
    check_trained(names)
    model, before = names["model"], names["backbone"]
    assert type(model.backbone) is names["Perceptron"]
    assert model.backbone.get_config()["width"] == before.get_config()["width"]
    for a, b in zip(model.backbone.weights, before.weights, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (a, b)))
    assert len(before.weights) == 7


def test_a_backbone_may_leave_out_build(run, monkeypatch):
    """Its layers are then built by their first call, also when a file is loaded."""
    code = SECTIONS["A backbone"][0]
    without = re.sub(r"    def build\(.*?\n\n", "", code, flags=re.DOTALL)
    assert "def build" in code and "def build" not in without
    monkeypatch.setitem(SECTIONS, "without build", [without])
    with pytest.warns(UserWarning, match="does not have a `build"):  # Keras's
        *_, names = run("without build")
    check_trained(names)
    model, before = names["model"], names["backbone"]
    for a, b in zip(model.backbone.weights, before.weights, strict=True):
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (a, b)))


def test_a_metric(run):
    *_, names = run("A metric")
    history = names["history"].history
    assert len(history["mean_gap_1_step"]) == len(history["mean_gap_2_steps"]) == 1
    gap = names["mean_gap"](names["images"] + 0.25, names["images"])
    assert gap == pytest.approx(0.25, rel=1e-5)
    metric, images = names["metric"], names["images"].reshape(16, -1)
    assert metric.reservoir.count == 6
    assert names["distance"] > 0
    metric = names["NearestNeighbour"](images)
    other = names["NearestNeighbour"](images)
    moved = images[:2].copy()
    moved[:, 0] += 1e-3
    metric.update(images[:2])
    other.update(moved, indices=[2, 3])
    metric.merge(other)
    assert metric.result() == pytest.approx(5e-4, rel=1e-3)
