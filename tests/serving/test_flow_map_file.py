"""A flow map written and read again is the same function."""

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm.backend.random_streams import random_states
from keras_imm.serving import flow_map_file


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_round_trip(tmp_path, policy):
    model = keras_imm.IMM(
        small_dit(dropout=0.1, dtype=keras.DTypePolicy(policy)),
        schedule="cosine",
        parameterization="simple_edm",
        second_time="stride",
        time_scale=500.0,
        min_time=0.01,
        max_time=0.9,
        sigma_data=0.7,
    )
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    values = [v.value for v in model.flow.variables]
    flow_map_file.save(tmp_path, model.flow, values)
    flow = flow_map_file.load(tmp_path)
    assert flow is not model.flow and flow.backbone is not model.backbone
    assert random_states(flow.backbone)
    for ours, theirs in zip(model.flow.variables, flow.variables, strict=True):
        np.testing.assert_array_equal(
            *(ops.convert_to_numpy(v).astype("float64") for v in (ours, theirs))
        )
    x = rng.standard_normal((3, 4, 4, 1)).astype("float32")
    labels = np.array([0, 1, 3], "int32")
    for one in ((0.8, 0.1), (0.9, 0.01)):
        found, expected = (
            ops.convert_to_numpy(ops.stop_gradient(f(x, *one, labels, 1.5)))
            for f in (flow, model.flow)
        )
        np.testing.assert_array_equal(found, expected)
    assert (flow.min_time, flow.max_time) == (0.01, 0.9)


def test_the_values_are_those_given_and_not_the_layers(tmp_path):
    """Such as the optimizer's averages."""
    model = keras_imm.IMM(small_dit())
    values = [ops.full_like(v.value, i) for i, v in enumerate(model.flow.variables)]
    flow_map_file.save(tmp_path, model.flow, values)
    for i, v in enumerate(flow_map_file.load(tmp_path).variables):
        assert np.all(ops.convert_to_numpy(v) == i)
