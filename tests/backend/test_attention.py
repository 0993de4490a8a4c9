"""Attention and its contexts, against float64 NumPy."""

import numpy as np
import pytest
from keras import ops

from keras_imm import backend
from keras_imm.backend.attention import (
    differentiable_forwards,
    fused_attention,
    in_forward_mode,
    may_recompute,
    plain_attention,
    without_recomputation,
)

QUERY, KEY, VALUE = np.random.default_rng(0).standard_normal((3, 2, 5, 3, 4))


def expected():
    scores = np.einsum("bqhd,bkhd->bhqk", QUERY, KEY) / np.sqrt(QUERY.shape[-1])
    weights = np.exp(scores) / np.sum(np.exp(scores), axis=-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, VALUE)


@pytest.mark.parametrize(
    "attention", [fused_attention, plain_attention, backend.dot_product_attention]
)
def test_attention_is_the_formula(attention):
    inputs = [ops.convert_to_tensor(x.astype("float32")) for x in (QUERY, KEY, VALUE)]
    result = ops.convert_to_numpy(attention(*inputs))
    np.testing.assert_allclose(result, expected(), rtol=1e-4, atol=1e-6)
    with differentiable_forwards():
        result = ops.convert_to_numpy(attention(*inputs))
    np.testing.assert_allclose(result, expected(), rtol=1e-4, atol=1e-6)


def test_attention_is_differentiated_forwards():
    """Along a direction of the values, in which it is linear."""
    inputs = [ops.convert_to_tensor(x.astype("float32")) for x in (QUERY, KEY, VALUE)]
    with differentiable_forwards():
        value, derivative = backend.jvp(
            lambda v: backend.dot_product_attention(*inputs[:2], v),
            (inputs[2],),
            (inputs[2],),
        )
    for result in (value, derivative):
        np.testing.assert_allclose(
            ops.convert_to_numpy(result), expected(), rtol=1e-4, atol=1e-6
        )


def test_blocks_are_recomputed_unless_a_context_says_otherwise():
    assert may_recompute() and not in_forward_mode()
    for context in (without_recomputation, differentiable_forwards):
        with pytest.raises(KeyboardInterrupt), context():
            assert not may_recompute()
            assert in_forward_mode() == (context is differentiable_forwards)
            raise KeyboardInterrupt
        assert may_recompute() and not in_forward_mode()
