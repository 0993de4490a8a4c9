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
