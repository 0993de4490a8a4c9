"""Derivatives forwards that are differentiated again, of layers that normalize."""

import keras
import numpy as np
import pytest
from backends import value_and_gradient
from keras import ops

from keras_imm import backend

SHAPE = (3, 4, 4, 8)
EPSILON = 1e-3


def normalized(x, axes):
    """Of mean 0 and variance 1, in NumPy."""
    mean = x.mean(axes, keepdims=True)
    return (x - mean) / np.sqrt(x.var(axes, keepdims=True) + EPSILON)


def by_layer(x):
    return normalized(x, 3)


def by_group(x):
    groups = x.reshape(*SHAPE[:3], 2, 4)
    return normalized(groups, (1, 2, 4)).reshape(SHAPE)


@pytest.mark.parametrize(
    ("layer", "formula"),
    [
        (keras.layers.LayerNormalization(epsilon=EPSILON), by_layer),
        (keras.layers.GroupNormalization(2, epsilon=EPSILON), by_group),
    ],
)
def test_the_gradient_of_a_derivative_of_normalized_values(layer, formula):
    """Against differences of NumPy's formula: means count as functions of x."""
    rng = np.random.default_rng(0)
    x, tangent, weights, direction = rng.standard_normal((4, *SHAPE))
    layer.build(SHAPE)

    def loss(x):
        v, w = (ops.convert_to_tensor(a.astype("float32")) for a in (tangent, weights))
        _, derivative = backend.jvp(layer, (x,), (v,))
        return ops.sum(derivative * w)

    value, gradient = value_and_gradient(loss, x.astype("float32"))

    def along(h, g):
        return np.sum(weights * formula(x + h * tangent + g * direction))

    h = 1e-4
    expected = (along(h, 0) - along(-h, 0)) / (2 * h)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    corners = along(h, h) - along(h, -h) - along(-h, h) + along(-h, -h)
    expected = corners / (4 * h * h)
    found = np.sum(gradient * direction)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_derivatives_of_keras_own_attention():
    """Against differences of NumPy's formula, with the weights that the layer has."""
    rng = np.random.default_rng(1)
    x, tangent = rng.standard_normal((2, 3, 5, 8))
    layer = keras.layers.MultiHeadAttention(num_heads=2, key_dim=4)
    layer(x.astype("float32"), x.astype("float32"))
    weights = [ops.convert_to_numpy(w).astype("float64") for w in layer.get_weights()]
    query, key, value = (
        lambda x, w=w, b=b: np.einsum("btd,dhk->bhtk", x, w) + b[:, None]
        for w, b in zip(weights[0:6:2], weights[1:6:2], strict=True)
    )

    def formula(x):
        scores = query(x) @ key(x).swapaxes(2, 3) / np.sqrt(4)
        shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        heads = shares @ value(x)
        return np.einsum("bhtk,hkd->btd", heads, weights[6]) + weights[7]

    found = backend.jvp(
        lambda x: layer(x, x),
        (ops.convert_to_tensor(x.astype("float32")),),
        (ops.convert_to_tensor(tangent.astype("float32")),),
    )
    h = 1e-5
    expected = (formula(x + h * tangent) - formula(x - h * tangent)) / (2 * h)
    np.testing.assert_allclose(ops.convert_to_numpy(found[0]), formula(x), atol=1e-4)
    np.testing.assert_allclose(ops.convert_to_numpy(found[1]), expected, atol=1e-4)
