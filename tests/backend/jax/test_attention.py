"""Attention where JAX's devices are said to be TPUs."""

import types

import keras
import numpy as np
import pytest

from keras_imm import backend

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="TPUs are used through JAX"
)


@pytest.fixture
def on_tpu(monkeypatch):
    import jax

    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="tpu")])


@pytest.mark.parametrize("flash", [None, True])
def test_a_tpu_has_products_that_mask_nothing(on_tpu, monkeypatch, flash):
    """Keras's kernel for TPUs, which fits these shapes, is causal and has no scale."""
    import jax

    monkeypatch.setattr(keras.config, "is_flash_attention_enabled", lambda: flash)
    query, key, value = np.random.default_rng(0).standard_normal((3, 1, 128, 2, 128))
    given = [x.astype("float32") for x in (query, key, value)]
    attention = jax.jit(lambda *inputs: backend.dot_product_attention(*inputs))

    program = jax.export.export(attention, platforms=("tpu",))(*given).mlir_module()
    assert "custom_call" not in program
    assert program.count("stablehlo.dot_general") == 2

    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(128)
    weights = np.exp(scores) / np.sum(np.exp(scores), axis=-1, keepdims=True)
    expected = np.einsum("bhqk,bkhd->bqhd", weights, value)
    np.testing.assert_allclose(attention(*given), expected, rtol=1e-3, atol=1e-5)
