"""Kernels between particles.

The three sums of a squared MMD cancel where the two sets of particles are alike, and
a constant added to the kernel drops out. A kernel that is a function of ||x - y||^2
therefore gives its value relative to k(x, x), which keeps the digits that 1 - 1 would
lose.
"""

from typing import Any

import keras
from keras import ops

from keras_imm.precision import at_least_float32, maximum
from keras_imm.registry import lookup
from keras_imm.validation import check_number

_MIN_DISTANCE = 1e-8


class Kernel:
    """Base class of kernels.

    Subclasses implement one of two methods:

    - `relative`, for a kernel that depends on x and y through ||x - y||^2 alone;
    - `pairs`, for any other kernel, such as one with an inner product or with learned
      features of x and y.

    Both may leave out a constant that is the same for every pair of particles, since
    it drops out of a squared MMD. The attribute `peak` is that constant: k(x, x) for
    `relative`, and 0 unless a subclass says otherwise.
    """

    peak = 0.0

    def pairs(self, x: Any, y: Any, scale: Any) -> Any:
        """k(x_i, y_j) - `peak` for every pair, which is all that a squared MMD needs.

        Args:
            x: Shape (..., n, dimension), float32 or wider.
            y: Shape (..., m, dimension), the dtype of `x`.
            scale: Kernel scale, IMM's 1 / |c_out(s, t)|; broadcasts with (..., n, m).

        Returns:
            Tensor of shape (..., n, m) in the dtype of `x`, with a finite gradient
            everywhere.
        """
        squared_distance = pairwise_squared_distance(x, y)
        return self.relative(squared_distance, scale, x.shape[-1])

    def relative(self, squared_distance: Any, scale: Any, dimension: int) -> Any:
        """k(x, y) - k(x, x).

        Args:
            squared_distance: ||x - y||^2, any shape.
            scale: Kernel scale, IMM's 1 / |c_out(s, t)|; broadcasts with it.
            dimension: Number of elements of x.

        Returns:
            Tensor of the shape of `squared_distance`, at most 0, with a finite
            gradient everywhere.
        """
        raise NotImplementedError(
            f"The kernel {type(self).__name__} implements neither `relative` nor "
            "`pairs`."
        )

    def __call__(self, x: Any, y: Any, scale: Any = 1.0) -> Any:
        """k(x_i, y_j) for every pair.

        Args:
            x: Shape (..., n, dimension).
            y: Shape (..., m, dimension).
            scale: Kernel scale; broadcasts with (..., n, m).

        Returns:
            Tensor of shape (..., n, m), float32 or wider.
        """
        x, y = at_least_float32(x), at_least_float32(y)
        scale = ops.convert_to_tensor(scale, x.dtype)
        return self.peak + self.pairs(x, y, scale)

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Kernel":
        """The kernel that `get_config` described."""
        return cls(**config)


def pairwise_squared_distance(x: Any, y: Any) -> Any:
    """||x_i - y_j||^2: subtract, then square; the Gram form loses the difference.

    Args:
        x: Shape (..., n, dimension).
        y: Shape (..., m, dimension).

    Returns:
        Tensor of shape (..., n, m).
    """
    difference = ops.expand_dims(x, -2) - ops.expand_dims(y, -3)
    return ops.sum(ops.square(difference), axis=-1)


@keras.saving.register_keras_serializable(package="keras_imm")
class Laplace(Kernel):
    """exp(-scale max(||x - y||, 1e-8) / dimension), the paper's choice (Eq. 67)."""

    peak = 1.0

    def relative(self, squared_distance: Any, scale: Any, dimension: int) -> Any:
        # The maximum is inside the root: its gradient is 0 there, not 0/0.
        distance = ops.sqrt(maximum(squared_distance, _MIN_DISTANCE**2))
        return ops.expm1(-scale * distance / dimension)


@keras.saving.register_keras_serializable(package="keras_imm")
class RBF(Kernel):
    """exp(-1/2 scale^bandwidth_power ||x - y||^2 / dimension).

    Args:
        bandwidth_power: In (0, 6]. 2 scales the distance by 1 / |c_out|, which is
            the argument of IMM App. C.8; 1 is the formula as printed there.
    """

    peak = 1.0

    def __init__(self, bandwidth_power: float = 2):
        # The scale reaches 1e6, and its power has to fit into float32.
        check_number(
            "bandwidth_power",
            bandwidth_power,
            "in (0, 6]",
            lambda v: 0 < v <= 6,
        )
        self.bandwidth_power = bandwidth_power

    def relative(self, squared_distance: Any, scale: Any, dimension: int) -> Any:
        bandwidth = scale**self.bandwidth_power
        return ops.expm1(-0.5 * bandwidth * squared_distance / dimension)

    def get_config(self) -> dict[str, Any]:
        return {"bandwidth_power": self.bandwidth_power}


@keras.saving.register_keras_serializable(package="keras_imm")
class PseudoHuber(Kernel):
    """c - sqrt(||x - y||^2 + c^2); uses neither scale nor dimension (App. C.8).

    Args:
        c: In [1e-18, 1e18]; the distance at which the kernel turns from quadratic to
            linear. The paper gives no value.
    """

    def __init__(self, c: float):
        # Its square has to fit into float32.
        check_number("c", c, "in [1e-18, 1e18]", lambda v: 1e-18 <= v <= 1e18)
        self.c = c

    def relative(self, squared_distance: Any, scale: Any, dimension: int) -> Any:
        return -squared_distance / (
            self.c + ops.sqrt(squared_distance + self.c * self.c)
        )

    def get_config(self) -> dict[str, Any]:
        return {"c": self.c}


@keras.saving.register_keras_serializable(package="keras_imm")
class Energy(Kernel):
    """-||x - y||^2; uses neither scale nor dimension.

    With one particle per group it gives twice the consistency loss (Lemma 1).
    """

    def relative(self, squared_distance: Any, scale: Any, dimension: int) -> Any:
        return -squared_distance


_KERNELS = {"laplace": Laplace, "rbf": RBF, "energy": Energy}


def get(identifier: str | Kernel) -> Kernel:
    """The kernel of that name, or the object itself.

    Known names: "laplace", "rbf", "energy"; `PseudoHuber(c)` has no default.

    Raises:
        ValueError: If the name is not known.
    """
    return lookup("kernel", identifier, _KERNELS, Kernel)
