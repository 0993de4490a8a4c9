"""Every kernel beside its formula, for the tests of kernels and of the objective."""

import functools

import pytest
import reference

from keras_imm import kernels

# Each kernel beside its formula, a function of x, y and the scale.
KERNELS = {
    "laplace": (kernels.Laplace(), reference.laplace),
    "rbf": (kernels.RBF(), reference.rbf),
    "rbf_printed": (
        kernels.RBF(bandwidth_power=1),
        functools.partial(reference.rbf, bandwidth_power=1),
    ),
    "pseudo_huber": (
        kernels.PseudoHuber(c=0.3),
        functools.partial(reference.pseudo_huber, c=0.3),
    ),
    "energy": (kernels.Energy(), reference.energy),
}
every_kernel = pytest.mark.parametrize(
    ("kernel", "formula"), KERNELS.values(), ids=KERNELS
)
