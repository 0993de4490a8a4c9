"""Kernels against their formulas, and at the places where formulas break."""

import keras
import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of, value_and_gradient
from contracts import subclasses_of
from contracts.kernel import KernelContract
from contracts.training import check_trains
from keras import ops
from kernel_formulas import KERNELS, every_kernel

from keras_imm import kernels, objective

SCALE = 1.5
RTOL = {"float32": 2e-6, "float64": 1e-12}
# The values of exp are 1 + expm1.
ATOL = {"float32": 3e-7, "float64": 1e-15}


def particles(dtype="float32", n=5, dimension=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, n, dimension)).astype(dtype)


def formula_matrix(formula, x, y, scale=SCALE):
    x, y = reference.float64(x), reference.float64(y)
    return np.array([[formula(a, b, scale) for b in y] for a in x])


@pytest.mark.parametrize("dtype", FLOATS)
@every_kernel
def test_formula(kernel, formula, dtype):
    x, y = particles(dtype)
    y = y[:3]
    actual = kernel(ops.convert_to_tensor(x), ops.convert_to_tensor(y), SCALE)
    assert dtype_of(actual) == dtype
    expected = formula_matrix(formula, x, y)
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual), expected, rtol=RTOL[dtype], atol=ATOL[dtype]
    )


@every_kernel
def test_value_and_relative_value_at_zero(kernel, formula):
    x = particles()[0, :1]
    peak = formula_matrix(formula, x, x).item()
    assert abs(kernel.peak - peak) < 1e-7
    value = ops.convert_to_numpy(kernel(x, x, SCALE)).item()
    assert value == pytest.approx(peak, abs=1e-7)
    zero = ops.zeros((1, 1))
    relative = ops.convert_to_numpy(kernel.relative(zero, SCALE, x.size)).item()
    assert relative == pytest.approx(0.0, abs=1e-8)


@every_kernel
def test_relative_is_the_value_less_the_peak(kernel, formula):
    x, y = particles()
    squared = np.sum((x[:, None] - y[None]).astype("float64") ** 2, axis=-1)
    squared = ops.convert_to_tensor(squared.astype("float32"))
    relative = ops.convert_to_numpy(kernel.relative(squared, SCALE, x.shape[-1]))
    expected = formula_matrix(formula, x, y) - formula_matrix(formula, x, x)[0, 0]
    np.testing.assert_allclose(relative, expected, rtol=3e-6)


@every_kernel
def test_leading_dimensions_have_their_own_scale(kernel, formula):
    x, y = particles(seed=1), particles(seed=2)[:, :2]
    scale = np.array([[[0.5]], [[2.0]]], "float32")
    actual = ops.convert_to_numpy(kernel(x, y, scale))
    for i in range(2):
        expected = formula_matrix(formula, x[i], y[i], scale.item(i))
        np.testing.assert_allclose(actual[i], expected, rtol=2e-6, atol=3e-7)


@pytest.mark.parametrize("scale", [1.0, 1e6])
@every_kernel
def test_gradient_of_identical_particles_is_zero(kernel, formula, scale):
    x = particles()[0]

    def total(y):
        # All pairs of a set with itself and with its copy: every diagonal is 0.
        return ops.sum(kernel(y, y, scale)) + ops.sum(kernel(y[:1], x[:1], scale))

    value, gradient = value_and_gradient(total, x[:1])
    assert np.isfinite(value)
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("scale", [0.5, 1e6])
@every_kernel
def test_gradient_is_finite_at_any_distance(kernel, formula, scale):
    distance = np.array([1e-30, 1e-12, 1e-9, 1e-7, 1e-3, 1e3, 1e8], "float32")
    y = 0.5 * distance[:, None] * np.ones((1, 4), "float32")
    x = np.zeros((1, 4), "float32")
    value, gradient = value_and_gradient(lambda y: ops.sum(kernel(x, y, scale)), y)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@every_kernel
def test_gradient_against_differences_of_the_formula(kernel, formula):
    x, y = particles(seed=3)
    _, gradient = value_and_gradient(lambda x: ops.sum(kernel(x, y, SCALE)), x[:1])
    step = 1e-6
    for i in range(x.shape[-1]):
        shift = step * np.eye(x.shape[-1])[i]
        slope = formula_matrix(formula, x[:1] + shift, y)
        slope = slope - formula_matrix(formula, x[:1] - shift, y)
        assert gradient[0, i] == pytest.approx(
            slope.sum() / (2 * step), rel=1e-4, abs=1e-6
        )


def test_laplace_is_flat_below_its_smallest_distance():
    x, y = np.zeros((1, 1), "float32"), np.full((1, 1), 0.5e-8, "float32")
    kernel = kernels.Laplace()
    _, gradient = value_and_gradient(lambda x: ops.sum(kernel(x, y, 1.0)), x)
    assert gradient.item() == 0.0
    _, gradient = value_and_gradient(lambda x: ops.sum(kernel(x, 4 * y, 1.0)), x)
    assert gradient.item() == pytest.approx(1.0, rel=1e-5)


def test_small_differences_keep_their_digits():
    """1 - exp(-z) for z = 1e-5: expm1 keeps 7 digits where exp keeps 2."""
    dimension = 3072
    squared = np.array([(1e-5 * dimension) ** 2], "float32")
    z = np.sqrt(squared.astype("float64")) / dimension
    rounded = np.exp(-z.astype("float32")) - np.float32(1)
    assert np.abs(rounded / np.expm1(-z) - 1).item() > 1e-4  # what it avoids
    for kernel, exact in [
        (kernels.Laplace(), np.expm1(-z)),
        (kernels.RBF(), np.expm1(-0.5 * z**2 * dimension)),
        (kernels.PseudoHuber(c=30.0), -(z**2) * dimension**2 / (60 + 1.5e-5)),
    ]:
        squared_distance = ops.convert_to_tensor(squared)
        actual = ops.convert_to_numpy(kernel.relative(squared_distance, 1.0, dimension))
        np.testing.assert_allclose(actual, exact, rtol=1e-6)


def test_distance_subtracts_before_it_squares():
    """D = 3072 and particles 0.1% apart: the Gram form has no digit left."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3072)).astype("float32")
    y = (x * (1 + 1e-3 * rng.standard_normal(x.shape))).astype("float32")
    exact = np.sum(
        (reference.float64(x)[:, None] - reference.float64(y)[None]) ** 2, axis=-1
    )
    gram = np.sum(x * x, -1)[:, None] + np.sum(y * y, -1)[None] - 2 * x @ y.T
    nearest = np.diag(exact)
    assert np.max(np.abs(np.diag(gram) / nearest - 1)) > 1e-2  # what it avoids
    actual = ops.convert_to_numpy(kernels.pairwise_squared_distance(x, y))
    np.testing.assert_allclose(actual, exact, rtol=1e-5)


def test_half_precision_particles_are_widened():
    x, y = particles("float16")
    for kernel, formula in KERNELS.values():
        value = kernel(ops.convert_to_tensor(x), ops.convert_to_tensor(y), SCALE)
        assert dtype_of(value) == "float32"
        expected = formula_matrix(formula, x, y)
        np.testing.assert_allclose(
            ops.convert_to_numpy(value), expected, rtol=2e-6, atol=3e-7
        )


@pytest.mark.parametrize("power", [0, -1, 7, float("nan")])
def test_bandwidth_power_is_checked(power):
    with pytest.raises(ValueError, match="`bandwidth_power` must be in") as error:
        kernels.RBF(bandwidth_power=power)
    assert f"bandwidth_power={power!r}" in str(error.value)


@pytest.mark.parametrize("c", [0, -1, 1e-30, float("inf"), float("nan")])
def test_c_is_checked(c):
    with pytest.raises(ValueError, match="`c` must be in") as error:
        kernels.PseudoHuber(c=c)
    assert f"c={c!r}" in str(error.value)


@pytest.mark.parametrize(
    "kernel",
    [kernels.RBF(bandwidth_power=6), *map(kernels.PseudoHuber, (1e-18, 1e18))],
)
def test_extreme_settings_stay_finite(kernel):
    x = particles()[0]
    value, gradient = value_and_gradient(lambda y: ops.sum(kernel(y, y, 1e6)), x)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("identifier", ["gaussian", "pseudo_huber", None])
def test_unknown_names_list_the_known_ones(identifier):
    with pytest.raises(ValueError, match="`kernel` must be one of") as error:
        kernels.get(identifier)
    assert "'laplace', 'rbf', 'energy'" in str(error.value)
    assert f"kernel={identifier!r}" in str(error.value)


# -- The contract, of these kernels and of a newcomer's


class TestEveryKernel(KernelContract):
    @pytest.fixture(params=[kernel for kernel, _ in KERNELS.values()], ids=KERNELS)
    def instance(self, request):
        return request.param


def test_every_kernel_is_tested():
    tested = {type(kernel) for kernel, _ in KERNELS.values()}
    assert tested == subclasses_of(kernels.Kernel, kernels)


@keras.saving.register_keras_serializable(package="tests")
class LaplacePlusLinear(kernels.Kernel):
    """exp(-scale ||x - y|| / D) + weight x . y / D: no function of the distance."""

    def __init__(self, weight=0.5):
        self.weight = weight
        self.laplace = kernels.Laplace()

    def pairs(self, x, y, scale):
        # ops.matmul rounds float64 to float32 under PyTorch.
        product = ops.sum(ops.expand_dims(x, -2) * ops.expand_dims(y, -3), axis=-1)
        return self.laplace.pairs(x, y, scale) + self.weight * product / x.shape[-1]

    def get_config(self):
        return {"weight": self.weight}


class TestNewKernel(KernelContract):
    make = LaplacePlusLinear


@pytest.mark.parametrize("dtype", FLOATS)
def test_a_kernel_of_more_than_the_distance(dtype):
    """The squared MMD of a linear kernel is the squared distance of the means."""
    rng = np.random.default_rng(0)
    y, y_target = rng.standard_normal((2, 24, 12)).astype(dtype)
    scale = np.ones(6, dtype)

    def mmd(kernel):
        value = objective.grouped_mmd(y, y_target, scale, kernel, 4)
        return ops.convert_to_numpy(value)

    means = [reference.float64(x).reshape(6, 4, 12).mean(axis=1) for x in (y, y_target)]
    expected = np.sum((means[0] - means[1]) ** 2, axis=-1) / 12
    linear = mmd(LaplacePlusLinear(2.0)) - mmd(LaplacePlusLinear(1.0))
    rtol = {"float32": 1e-4, "float64": 1e-10}[dtype]
    np.testing.assert_allclose(linear, expected, rtol=rtol)


def test_a_new_kernel_trains():
    check_trains(kernel=LaplacePlusLinear())


def test_a_kernel_without_its_method_says_which():
    class Empty(kernels.Kernel):
        pass

    x = ops.ones((1, 2))
    with pytest.raises(NotImplementedError, match="Empty implements neither"):
        Empty()(x, x)
