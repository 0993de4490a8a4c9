"""The flow of Gaussian data N(0, data_std^2), in closed form.

x_t = alpha x + sigma noise has the variance n_t = alpha^2 data_std^2 + sigma^2
sigma_data^2, and the flow scales: f_{s,t}(x) = x sqrt(n_s / n_t), with the velocity
x n'_t / (2 n_t).
"""

import keras
import numpy as np
import reference
from keras import ops

import keras_imm

SIGMA_DATA = 0.5


def variance(schedule, t, data_std):
    a, b = reference.alpha(schedule, t), reference.sigma(schedule, t)
    return (a * data_std) ** 2 + (b * SIGMA_DATA) ** 2


def flow(schedule, x, t, s, data_std):
    """f_{s,t}(x), float64."""
    ratio = variance(schedule, s, data_std) / variance(schedule, t, data_std)
    return np.asarray(x, "float64") * np.sqrt(ratio)


def velocity(schedule, x, t, data_std):
    """dx/dt at (x, t), float64."""
    a, b = reference.alpha(schedule, t), reference.sigma(schedule, t)
    da = reference.alpha_derivative(schedule, t)
    db = reference.sigma_derivative(schedule, t)
    half_slope = a * da * data_std**2 + b * db * SIGMA_DATA**2
    return np.asarray(x, "float64") * half_slope / variance(schedule, t, data_std)


@keras.saving.register_keras_serializable(package="gaussian_flow")
class GaussianFlow(keras.layers.Layer):
    """The network whose flow map is exact, for "flow_matching" and "euler_fm".

    f_{s,t}(x) = x - (t - s) sigma_data G, and with n a polynomial in t the difference
    of the roots has no cancellation.
    """

    def __init__(self, data_std=1.25, shape=(2, 2, 1), **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.data_std, self.image_shape = data_std, tuple(shape)

    def call(self, inputs, training=False):
        scaled, t, s = inputs
        t, s = (ops.reshape(c, (-1, 1, 1, 1)) / 1000.0 for c in (t, s))
        x = scaled * (SIGMA_DATA * ops.sqrt((1.0 - t) ** 2 + t**2))
        data, noise = self.data_std**2, SIGMA_DATA**2
        n_t, n_s = ((1.0 - c) ** 2 * data + c**2 * noise for c in (t, s))
        slope = (data + noise) * (s + t) - 2.0 * data
        root = ops.sqrt(n_t)
        return x * slope / (root * (ops.sqrt(n_s) + root)) / SIGMA_DATA

    def get_config(self):
        config = {"data_std": self.data_std, "shape": self.image_shape}
        return super().get_config() | config


@keras.saving.register_keras_serializable(package="gaussian_flow")
class GaussianVelocity(keras.layers.Layer):
    """The network whose velocity is exact: G = (velocity - skip x) / out."""

    def __init__(self, schedule, parameterization, data_std=1.25, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.schedule = keras_imm.schedules.get(schedule)
        self.parameterization = keras_imm.parameterizations.get(parameterization)
        self.data_std, self.image_shape = data_std, (2, 2, 1)

    def call(self, inputs, training=False):
        t = inputs[1] / 1000.0
        a, b = self.schedule.alpha(t), self.schedule.sigma(t)
        da, db = self.schedule.alpha_derivative(t), self.schedule.sigma_derivative(t)
        data, noise = self.data_std**2, SIGMA_DATA**2
        slope = (a * da * data + b * db * noise) / (a * a * data + b * b * noise)
        skip, out = self.parameterization.velocity_coefficients(
            self.schedule, t, SIGMA_DATA
        )
        x = SIGMA_DATA * ops.sqrt(a * a + b * b) * (slope - skip) / out
        return inputs[0] * ops.reshape(x, (-1, 1, 1, 1))


def gaussian_model(**options):
    """A model of the flow map of Gaussian data, exact for every pair of times."""
    options = {"objective": "flow_matching"} | options  # defined up to t = 1
    return keras_imm.FlowMapModel(GaussianFlow(), sigma_data=SIGMA_DATA, **options)
