"""What every kernel must do."""

import numpy as np
import pytest
from backends import FLOATS, dtype_of, value_and_gradient
from keras import ops

from contracts.serializable import SerializableContract
from keras_imm import kernels, objective

RTOL = {"float32": 1e-5, "float64": 1e-11}


def particles(dtype="float32", seed=0):
    """Two groups of particles of dimension 12: four x and three y in each."""
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, 4, 12)), rng.standard_normal((2, 3, 12))
    return x.astype(dtype), y.astype(dtype)


def scales(dtype="float32"):
    """One scale per group."""
    return np.array([[[0.5]], [[2.0]]], dtype)


def pairs(kernel, x, y, scale):
    return kernel.pairs(*map(ops.convert_to_tensor, (x, y, scale)))


class KernelContract(SerializableContract):
    """`make()` returns a `keras_imm.kernels.Kernel`."""

    @pytest.fixture
    def kernel(self, instance):
        assert isinstance(instance, kernels.Kernel)
        return instance

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_shape_and_dtype(self, kernel, dtype):
        x, y = particles(dtype)
        for value in (
            pairs(kernel, x, y, scales(dtype)),
            kernel(x, y, scales(dtype)),
            kernel(x, y),
        ):
            assert tuple(value.shape) == (2, 4, 3)
            assert dtype_of(value) == dtype
            assert np.all(np.isfinite(ops.convert_to_numpy(value)))

    def test_half_precision_is_widened(self, kernel):
        x, y = map(ops.convert_to_tensor, particles("float16"))
        assert dtype_of(kernel(x, y, 1.5)) == "float32"

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_value_is_the_peak_plus_pairs(self, kernel, dtype):
        x, y = particles(dtype)
        relative = ops.convert_to_numpy(pairs(kernel, x, y, scales(dtype)))
        value = ops.convert_to_numpy(kernel(x, y, scales(dtype)))
        np.testing.assert_allclose(value, kernel.peak + relative, rtol=RTOL[dtype])

    @pytest.mark.parametrize("dtype", FLOATS[1:])
    def test_float64_keeps_its_digits(self, kernel, dtype):
        """No part of it rounds to float32: it is smooth at a step of 1e-7."""
        x, y = particles(dtype)
        step = 1e-7 * np.random.default_rng(1).standard_normal(x.shape)
        before, middle, after = (
            ops.convert_to_numpy(pairs(kernel, moved, y, scales(dtype)))
            for moved in (x - step, x, x + step)
        )
        assert np.all(before != after)
        np.testing.assert_allclose(before + after - 2 * middle, 0, atol=1e-11)

    @pytest.mark.parametrize("dtype", FLOATS)
    def test_symmetric(self, kernel, dtype):
        x, y = particles(dtype)
        forward = ops.convert_to_numpy(pairs(kernel, x, y, scales(dtype)))
        backward = ops.convert_to_numpy(pairs(kernel, y, x, scales(dtype)))
        size = np.abs(forward).max()
        np.testing.assert_allclose(
            forward, backward.swapaxes(1, 2), rtol=0, atol=RTOL[dtype] * size
        )

    def test_each_pair_and_group_by_itself(self, kernel):
        x, y = particles()
        together = ops.convert_to_numpy(pairs(kernel, x, y, scales()))
        size = np.abs(together).max()
        for group, i, j in np.ndindex(together.shape):
            alone = pairs(
                kernel, x[group, i : i + 1], y[group, j : j + 1], scales()[group]
            )
            alone = ops.convert_to_numpy(alone).item()
            assert abs(together[group, i, j] - alone) <= RTOL["float32"] * size

    def test_conditionally_positive_definite(self, kernel):
        """So that no squared MMD is negative, whatever the sets of particles."""
        x = np.random.default_rng(3).standard_normal((16, 5)).astype("float32")
        matrix = ops.convert_to_numpy(pairs(kernel, x, x, 1.5)).astype("float64")
        centring = np.eye(16) - 1 / 16
        eigenvalues = np.linalg.eigvalsh(centring @ matrix @ centring)
        assert eigenvalues.min() > -1e-5 * np.abs(matrix).max()
        # And not blind: some sets do differ.
        assert eigenvalues.max() > 0

    def test_squared_mmd_tells_sets_apart(self, kernel):
        y = particles()[0].reshape(8, 12)
        scale = np.ones(2, "float32")
        same = objective.grouped_mmd(y, y, scale, kernel)
        moved = objective.grouped_mmd(y, y + 1, scale, kernel)
        np.testing.assert_allclose(ops.convert_to_numpy(same), 0, atol=1e-5)
        assert np.all(ops.convert_to_numpy(moved) > 1e-2)

    @pytest.mark.parametrize("scale", [1e-2, 1.0, 1e6])
    @pytest.mark.parametrize("gap", [0.0, 1e-30, 1e-9, 1e-3, 1e3])
    def test_gradient_is_finite(self, kernel, scale, gap):
        """Of particles that are equal, next to each other, and far apart."""
        x = particles()[0][0]

        def total(moved):
            return ops.sum(pairs(kernel, moved, x, scale)) + ops.sum(
                pairs(kernel, moved, moved, scale)
            )

        value, gradient = value_and_gradient(total, x + np.float32(gap))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))

    def test_radial_kernels_are_relative_to_their_peak(self, kernel):
        if type(kernel).relative is kernels.Kernel.relative:
            pytest.skip("not a function of the distance")
        x, y = particles()
        assert np.all(ops.convert_to_numpy(pairs(kernel, x, y, scales())) < 0)
        to_itself = ops.convert_to_numpy(pairs(kernel, x, x, scales()))
        diagonal = np.diagonal(to_itself, axis1=1, axis2=2)
        np.testing.assert_allclose(diagonal, 0, atol=1e-8)
        distance = ops.convert_to_tensor(np.geomspace(1e-12, 1e6, 100, dtype="float32"))
        relative = ops.convert_to_numpy(kernel.relative(distance, 1.0, 12))
        assert np.all(relative <= 0)
        assert np.all(np.diff(relative) <= 0)
