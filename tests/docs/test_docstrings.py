"""The examples in the docstrings of the base classes run."""

import inspect
import re
import sys
import types
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.saving.object_registration import GLOBAL_CUSTOM_OBJECTS
from small_dit import small_dit

import keras_imm
from keras_imm.flow_map import FlowMap, Network, per_sample
from keras_imm.objectives import Objective
from keras_imm.samplers import Sampler, SamplingPlan

pytestmark = [
    pytest.mark.any_backend("what the examples show is tested on each"),
    pytest.mark.slow("runs every example"),
]


@pytest.fixture
def run(monkeypatch):
    """Runs the example of a class with some names, and returns all names after it."""
    module = types.ModuleType("docstring_example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    registered = dict(GLOBAL_CUSTOM_OBJECTS)
    names = vars(module)
    names |= {"Any": Any, "NamedTuple": NamedTuple, "keras": keras, "np": np}
    names |= {"ops": ops, "keras_imm": keras_imm, "per_sample": per_sample}
    names |= {"Network": Network, "SamplingPlan": SamplingPlan}

    def example(kind, **given):
        names.update(given)
        (code,) = re.findall(
            r"^```python\n(.*?)^```$", inspect.getdoc(kind), re.DOTALL | re.MULTILINE
        )
        exec(code, names)
        return names

    yield example
    GLOBAL_CUSTOM_OBJECTS.clear()
    GLOBAL_CUSTOM_OBJECTS.update(registered)


def test_flow_map(run):
    names = run(FlowMap)
    assert tuple(names["x_s"].shape) == tuple(names["velocity"].shape) == (2, 8, 8, 1)


def test_network(run):
    flow_map = FlowMap(small_dit())
    x = np.ones((2, 4, 4, 1), "float32")
    t, s = np.float32([0.9, 0.8]), np.float32([0.1, 0.2])
    given = map(ops.convert_to_tensor, (x, t, s, x))
    x_t, t, s, velocity = given
    labels = ops.convert_to_tensor(np.int32([0, 1]))
    names = run(
        Network, flow_map=flow_map, x_t=x_t, t=t, s=s, labels=labels, velocity=velocity
    )
    for name in ("x_s", "g", "derivative"):
        assert tuple(names[name].shape) == x.shape


def test_objective(run):
    model = run(Objective, backbone=small_dit())["model"]
    model.compile("adam")
    x = np.random.default_rng(0).standard_normal((8, 4, 4, 1)).astype("float32")
    history = model.fit(x, np.arange(8) % 3, batch_size=8, epochs=3, verbose=0).history
    assert np.all(np.isfinite(history["loss"])) and history["loss"][0] > 0


def test_sampler(run):
    """Along straight paths of one velocity each method ends at the same place."""
    model = keras_imm.FlowMapModel(small_dit(num_classes=0), "flow_matching")
    names = run(Sampler, model=model)
    assert names["images"].shape == (4, 4, 4, 1)
    noise = np.random.default_rng(0).standard_normal((2, 4, 4, 1)).astype("float32")
    midpoint, euler = (
        model.generate(noise=noise, num_steps=3, sampler=sampler)
        for sampler in (names["Midpoint"](), "euler")
    )
    # A new DiT gives 0: the paths do not move.
    np.testing.assert_allclose(midpoint, 0.5 * noise, rtol=1e-5)
    np.testing.assert_allclose(euler, 0.5 * noise, rtol=1e-5)


def test_sampling_plan(run):
    model = keras_imm.IMM(small_dit(num_classes=5))
    names = run(SamplingPlan, model=model)
    assert names["images"].shape == (3, 4, 4, 1)
    times = names["plan"].times(model.flow)
    np.testing.assert_allclose(times, np.linspace(0.994, 0.0, 5))
