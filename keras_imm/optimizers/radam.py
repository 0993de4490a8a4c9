"""Rectified Adam."""

import math
import types
from typing import Any

import keras
from keras import ops

from keras_imm.backend import keras_private
from keras_imm.validation import (
    check_boolean,
    check_integer,
    check_number,
    check_positive_number,
    check_rate,
)


@keras.saving.register_keras_serializable(package="keras_imm")
class RAdam(keras.optimizers.Optimizer):
    """Adam whose adaptive learning rate waits until its variance is bounded.

    With gradient g at step t = 1, 2, ... and rho_inf = 2 / (1 - beta_2) - 1:

        m = beta_1 m + (1 - beta_1) g
        v = beta_2 v + (1 - beta_2) g^2
        rho = rho_inf - 2 t beta_2^t / (1 - beta_2^t)
        r = sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho))
        m_hat = m / (1 - beta_1^t)
        weight -= learning_rate m_hat r sqrt(1 - beta_2^t) / (sqrt(v) + epsilon)

    While rho is 5 or less (the first five steps at beta_2 = 0.999, every step at
    beta_2 of 2/3 or less) the last line is `weight -= learning_rate m_hat`. Epsilon is
    added before the bias correction of v, as PyTorch and Keras's Adam do. Weight decay
    is decoupled: the weight is first multiplied by `1 - learning_rate weight_decay`.

    Args:
        learning_rate: Number, at least 0, or a
            `keras.optimizers.schedules.LearningRateSchedule`, or a callable without
            arguments. Defaults to 1e-3.
        beta_1: Number in [0, 1). Decay rate of the mean of gradients. Defaults to 0.9.
        beta_2: Number in [0, 1). Decay rate of the mean of squared gradients. Defaults
            to 0.999.
        epsilon: Number above 0. Defaults to 1e-8, as in PyTorch; Keras's Adam has 1e-7.
        weight_decay: Number or None. Decoupled weight decay. Defaults to None.
        clipnorm: Number or None. Each gradient's norm is clipped to it.
        clipvalue: Number or None. Each gradient's entries are clipped to it.
        global_clipnorm: Number or None. The norm of all gradients together is clipped
            to it.
        use_ema: Boolean. Whether a moving average of the weights is kept. Defaults to
            False.
        ema_momentum: Number in [0, 1]. Decay rate of that average. Defaults to 0.99.
        ema_overwrite_frequency: Integer or None. Steps after which the average
            overwrites the weights. Defaults to None: not before the end of `fit`.
        loss_scale_factor: Number or None. The loss is multiplied by it and the
            gradients are divided by it.
        gradient_accumulation_steps: Integer of at least 2, or None. Batches whose
            gradients are averaged before one step. `keras_imm.IMM` has its own
            `accumulation_steps` and refuses this one.
        name: String or None. Name of the optimizer.
        **kwargs: Other arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    optimizer = keras_imm.optimizers.RAdam(1e-4, use_ema=True, ema_momentum=0.9999)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(optimizer, loss="mse")
    model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
    ```

    Reference:
        - [Liu et al., 2020](https://arxiv.org/abs/1908.03265), Algorithm 2
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        **kwargs,
    ):
        if not callable(learning_rate):
            # 0 is where many schedules end: a model saved there has to load.
            allowed = "a finite number of at least 0, a schedule or a callable"
            check_number("learning_rate", learning_rate, allowed, lambda v: v >= 0)
            learning_rate = float(learning_rate)
        check_rate("beta_1", beta_1)
        check_rate("beta_2", beta_2)
        check_positive_number("epsilon", epsilon)
        check_boolean("use_ema", use_ema)
        if gradient_accumulation_steps is not None:
            check_integer(
                "gradient_accumulation_steps", gradient_accumulation_steps, at_least=2
            )
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clipnorm=clipnorm,
            clipvalue=clipvalue,
            global_clipnorm=global_clipnorm,
            use_ema=use_ema,
            ema_momentum=ema_momentum,
            ema_overwrite_frequency=ema_overwrite_frequency,
            loss_scale_factor=loss_scale_factor,
            gradient_accumulation_steps=gradient_accumulation_steps,
            name=name,
            **kwargs,
        )
        self.beta_1 = float(beta_1)
        self.beta_2 = float(beta_2)
        self.epsilon = float(epsilon)
        # What all weights share in the step that `apply` is making.
        self._step = types.SimpleNamespace(coefficients=None)

    def build(self, variables) -> None:
        if self.built:
            return
        super().build(variables)
        self._momentums, self._velocities = self.add_optimizer_variables(
            variables, ["momentum", "velocity"]
        )

    def apply(self, grads, trainable_variables=None) -> None:
        # Once for all weights: some 30 small operations, which run one by one in
        # eager mode.
        self._step.coefficients = self._coefficients()
        try:
            super().apply(grads, trainable_variables)
        finally:
            self._step.coefficients = None

    def update_step(self, gradient, variable, learning_rate) -> None:
        coefficients = self._step.coefficients or self._coefficients()
        index = keras_private.variable_index(self, variable)
        m, v = self._momentums[index], self._velocities[index]
        own = keras.backend.standardize_dtype(variable.dtype)
        dtype = keras.backend.result_type(own, "float32")
        momentum_bias, adaptive_scale, is_rectified = coefficients
        learning_rate, momentum_bias, adaptive_scale = (
            ops.cast(x, dtype) for x in (learning_rate, momentum_bias, adaptive_scale)
        )

        # TensorFlow gives an embedding's gradient as slices, a row twice if it was
        # looked up twice. `reshape` adds them up: their sum is squared, not each.
        gradient = ops.cast(ops.reshape(gradient, variable.shape), dtype)
        self.assign_add(m, (gradient - ops.cast(m, dtype)) * (1 - self.beta_1))
        squared = ops.square(gradient)
        self.assign_add(v, (squared - ops.cast(v, dtype)) * (1 - self.beta_2))

        root = ops.sqrt(ops.cast(v, dtype)) + self.epsilon
        divisor = ops.where(is_rectified, root / adaptive_scale, 1.0)
        step = learning_rate / momentum_bias * ops.cast(m, dtype) / divisor
        self.assign_sub(variable, ops.cast(step, own))

    def _coefficients(self) -> tuple:
        """What the step has in common for all weights, from its number t.

        Returns:
            1 - beta_1^t; r sqrt(1 - beta_2^t), or 1 before the rectification; whether
            the step is rectified. Scalars, float32 and boolean.
        """
        t = ops.cast(self.iterations, "float32") + 1.0
        one = ops.ones_like(t)
        momentum_bias = one_minus_power(self.beta_1, t)
        rho_inf = 2 / (1 - self.beta_2) - 1
        if rho_inf <= 5:
            return momentum_bias, one, t < 0
        rho = sma_length(self.beta_2, t)
        is_rectified = rho > 5
        rho = ops.where(is_rectified, rho, rho_inf)  # no root of a negative number
        r = ops.sqrt(
            (rho - 4) / (rho_inf - 4) * ((rho - 2) / (rho_inf - 2)) * (rho_inf / rho)
        )
        adaptive_scale = r * ops.sqrt(one_minus_power(self.beta_2, t))
        return momentum_bias, adaptive_scale, is_rectified

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon)
        return config


def one_minus_power(beta: float, t: Any) -> Any:
    """1 - beta^t in float32, to its last digits also where beta^t is close to 1."""
    if beta == 0:
        return ops.ones_like(t)
    return -ops.expm1(t * math.log(beta))


def sma_length(beta: float, t: Any) -> Any:
    """Length rho of the approximated simple moving average (Liu et al., Section 3.3).

    rho_inf - 2 t beta^t / (1 - beta^t) as it stands loses all digits to the difference
    of two large numbers when t is small. With x = -t log(beta), beta^t / (1 - beta^t)
    is 1 / expm1(x) = 1 / x - 1 / 2 + x / 12 - ..., whose first two terms are t and a
    constant, added here in double precision.

    Args:
        beta: Number in (0, 1).
        t: Float32 scalar tensor, at least 1.

    Returns:
        Float32 scalar tensor.
    """
    rate = -math.log(beta)
    rho_inf = 2 / (1 - beta) - 1
    x = t * rate
    # Bernoulli numbers B_2k over (2k)!: below 1e-9 is left out at x = 1.
    y = x * x
    rest = x * (1 / 12 - y * (1 / 720 - y * (1 / 30240 - y * (1 / 1209600))))
    early = (rho_inf - 2 / rate) + t * (1 - 2 * rest)
    late = rho_inf - 2 * t / ops.expm1(x)
    return ops.where(x < 1, early, late)
