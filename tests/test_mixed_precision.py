"""Sampling and training in half precision; `test_golden.py` has the flow map."""

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit
from test_golden import GOLDEN, GUIDANCE, channels_last, load

import keras_imm

pytestmark = pytest.mark.slow("trains in three precisions")

POLICIES = [
    "mixed_bfloat16",
    pytest.param(
        "mixed_float16",
        marks=pytest.mark.skipif(
            keras.backend.backend() == "jax",
            reason="JAX has no float16 attention on the CPU",
        ),
    ),
]


# The U-Nets' flow maps are as near, but not their samples after four steps: up to 0.055
# away in bfloat16 and 0.007 in float16.
DITS = [path for path in GOLDEN if path.stem.startswith("dit")]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("path", DITS, ids=lambda path: path.stem)
def test_samples_are_near_the_golden_ones(path, policy):
    arrays, model = load(path, policy)
    images = model.generate(
        arrays["labels"],
        num_steps=4,
        guidance_scale=GUIDANCE,
        noise=channels_last(arrays["latents"]) / model.sigma_data,
    )
    assert images.dtype == "float32"
    expected = channels_last(arrays["pushforward_uniform_4"])
    error = np.abs(images - expected).max()
    tolerance = 3e-2 if policy == "mixed_bfloat16" else 3e-3
    assert 1e-4 < error < tolerance  # float32 is within 1e-5


def ten_steps(policy, images, labels):
    """A model after ten optimizer steps, their losses and the weights before them."""
    model = keras_imm.IMM(
        small_dit(dtype=policy),
        time_mapping=keras_imm.time_mappings.EtaDecrement(k=15, min_gap=1e-4),
    )
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape))
    before = [ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=0.0, epsilon=1e-8, use_ema=True)
    )
    losses = [float(model.train_on_batch(images, labels)) for _ in range(10)]
    return model, losses, before


@pytest.mark.parametrize("policy", POLICIES)
def test_ten_steps_with_the_finest_mapping(images, labels, policy):
    model, losses, before = ten_steps(policy, images, labels)
    # None was left out for gradients that overflowed after loss scaling.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    assert int(optimizer.iterations) == 10
    variables = model.variables + model.optimizer.variables
    assert all(np.isfinite(ops.convert_to_numpy(v)).all() for v in variables)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        new = ops.convert_to_numpy(variable)
        assert new.dtype == "float32"
        # Adam moves a weight by up to the learning rate at each step.
        assert 1e-3 < np.abs(new - old).max() < 11e-3, variable.path
    # The same times, noise and labels in float32.
    _, expected, _ = ten_steps("float32", images, labels)
    np.testing.assert_allclose(losses, expected, rtol=0.05)
