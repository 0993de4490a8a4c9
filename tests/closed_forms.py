"""Networks in closed form, as NumPy and as keras.ops, and their derivatives."""

import contextlib

import keras
import numpy as np
from function_network import FunctionNetwork
from keras import ops

from keras_imm.flow_map import FlowMap, Network

SIGMA = 0.5
STEP = 1e-30  # of derivatives by a complex step, which are exact


def column(times):
    return np.reshape(times, (-1, 1, 1, 1))


def numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(ops.convert_to_tensor(x))))


def c_in(t, schedule="flow_matching"):
    angle = np.pi * t / 2
    alpha, sigma = (
        (1 - t, t) if schedule == "flow_matching" else (np.cos(angle), np.sin(angle))
    )
    return 1 / (SIGMA * np.sqrt(alpha**2 + sigma**2))


def raw(x, t, s, labels, tanh, weights=(0.7, 0.4, -0.3, 0.1)):
    """What stands in for a backbone: of c_in x, t and the second time, and labels."""
    a, b, c, d = weights
    return tanh(x * (a + b * t) + c * s + d * labels)


def output(x, t, s, labels=None, second_time="stride", schedule="flow_matching"):
    """G at (x, t, s) in NumPy; complex times and samples, too."""
    labels = np.zeros(len(x)) if labels is None else labels
    t, s, labels = map(column, (t, s, labels))
    second = t - s if second_time == "stride" else s
    return raw(c_in(t, schedule) * x, t, second, labels, np.tanh)


def derivative(function, primals, tangents):
    """Along the tangents, by a complex step."""
    moved = (
        p + 1j * STEP * tangent for p, tangent in zip(primals, tangents, strict=True)
    )
    return function(*moved).imag / STEP


def total_derivative(x, t, s, labels, velocity, rate=1.0, **options):
    return derivative(
        lambda x, t: output(x, t, s, labels, **options),
        (x, t),
        (velocity, rate * np.ones_like(t)),
    )


def network(weights=(0.7, 0.4, -0.3, 0.1), averaged=None, **options):
    """The same network as `output`, of `weights` that may be tensors.

    Args:
        weights: Of the stand-in for a backbone.
        averaged: Other weights by the name of averages.
        **options: Of `FlowMap`.
    """
    chosen = {"weights": weights}

    def call(x, c_t, c_s, labels=None):
        shape = (-1, 1, 1, 1)
        labels = ops.zeros_like(c_t) if labels is None else labels
        t, s, labels = (
            ops.reshape(ops.cast(v, x.dtype), shape) for v in (c_t, c_s, labels)
        )
        return raw(x, t, s, labels, ops.tanh, chosen["weights"])

    @contextlib.contextmanager
    def with_weights(name):
        chosen["weights"] = averaged[name]
        yield
        chosen["weights"] = weights

    options = {"time_scale": 1.0, "second_time": "stride", "max_time": 1.0} | options
    flow_map = FlowMap(
        FunctionNetwork(call, num_classes=3), sigma_data=SIGMA, **options
    )
    return Network(flow_map, weights=with_weights if averaged else None)


def batch(rows=8, dtype="float64", seed=0, schedule="flow_matching"):
    """x, noise, t, s and labels, of which no label is the null label."""
    rng = np.random.default_rng(seed)
    x, noise = SIGMA * rng.standard_normal((2, rows, 2, 2, 1))
    t = rng.uniform(0.2, 0.95, rows)
    s = t * rng.uniform(0.1, 0.9, rows)
    labels = rng.integers(3, size=rows).astype("int32")
    return *(v.astype(dtype) for v in (x, noise, t, s)), labels


def tensors(*arrays):
    return tuple(map(ops.convert_to_tensor, arrays))


def of_batch(objective, network, *arrays):
    """Particles, target and loss of given noise and times."""
    particles = objective.noised(network, *tensors(*arrays))
    target = objective.target(network, particles)
    target = keras.tree.map_structure(ops.stop_gradient, target)
    loss, others = objective.loss(network, particles, target)
    return (
        particles,
        target,
        float(numpy(loss)),
        {k: numpy(v) for k, v in others.items()},
    )
