"""The squared MMD of groups of particles against float64 NumPy, and its properties."""

import numpy as np
import pytest
import reference
from backends import FLOATS, dtype_of
from keras import ops
from kernel_formulas import every_kernel

import keras_imm
from keras_imm import objectives

SIGMA_DATA = 0.5
GROUPS, M, DIMENSION = 6, 4, 12


def data(dtype="float32", batch=GROUPS * M, seed=0):
    """Two sets of particles."""
    rng = np.random.default_rng(seed)
    return (SIGMA_DATA * rng.standard_normal((2, batch, DIMENSION))).astype(dtype)


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


SCALES = np.array([0.3, 1.0, 3.0, 10.0, 0.5, 2.0], "float32")


def mmd(y, y_target, scales=SCALES, kernel="laplace", group_size=M):
    return numpy(objectives.grouped_mmd(y, y_target, scales, kernel, group_size))


@pytest.mark.parametrize("dtype", FLOATS)
@every_kernel
def test_grouped_mmd(kernel, formula, dtype):
    y, y_target = data(dtype)
    result = objectives.grouped_mmd(y, y_target, SCALES, kernel, M)
    assert dtype_of(result) == dtype
    expected = reference.grouped_mmd(y, y_target, SCALES, formula, M)
    rtol = {"float32": 2e-5, "float64": 1e-12}[dtype]
    np.testing.assert_allclose(numpy(result), expected, rtol=rtol)


def test_images_are_flattened():
    y, y_target = data()
    images = [x.reshape(-1, 2, 3, 2) for x in (y, y_target)]
    np.testing.assert_allclose(mmd(*images), mmd(y, y_target), rtol=1e-6)


@every_kernel
def test_order_within_a_group_does_not_matter(kernel, formula):
    y, y_target = data()
    rng = np.random.default_rng(4)

    def shuffled(x):
        return rng.permuted(x.reshape(GROUPS, M, -1), axis=1).reshape(x.shape)

    # Whole rows, each set by itself.
    order = np.concatenate([M * i + rng.permutation(M) for i in range(GROUPS)])
    expected = mmd(y, y_target, kernel=kernel)
    for pair in [(y[order], y_target), (y, y_target[order])]:
        np.testing.assert_allclose(mmd(*pair, kernel=kernel), expected, rtol=2e-5)
    # Between groups it does matter.
    assert not np.allclose(mmd(np.roll(y, 1, 0), y_target, kernel=kernel), expected)


@every_kernel
def test_groups_are_independent(kernel, formula):
    y, y_target = data()
    before = mmd(y, y_target, kernel=kernel)
    y = y.copy()
    y[2 * M : 3 * M] += 1
    after = mmd(y, y_target, kernel=kernel)
    changed = before != after
    assert changed.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("kernel", ["laplace", "rbf"])
def test_characteristic_kernels_are_never_negative(kernel):
    for seed, spread in enumerate([1e-6, 1e-3, 1.0, 30.0]):
        y, noise = data(seed=seed)
        values = mmd(y, y + spread * noise, kernel=kernel)
        # In exact arithmetic; here to the rounding of a mean of numbers below 1.
        assert np.all(values > -1e-7)
        assert spread < 1 or np.all(values > 1e-3)


@every_kernel
def test_identical_sets_have_no_distance(kernel, formula):
    y = data()[0]
    assert np.all(mmd(y, y, kernel=kernel) == 0)
    # In another order too.
    backwards = y.reshape(GROUPS, M, -1)[:, ::-1].reshape(y.shape)
    np.testing.assert_allclose(mmd(y, backwards, kernel=kernel), 0, atol=2e-6)


def test_float16_particles_are_computed_in_float32():
    y, y_target = data("float16")
    expected = reference.grouped_mmd(y, y_target, SCALES, reference.laplace, M)
    y, y_target = map(ops.convert_to_tensor, (y, y_target))
    result = objectives.grouped_mmd(y, y_target, SCALES.astype("float16"))
    assert dtype_of(result) == "float32"
    np.testing.assert_allclose(numpy(result), expected, rtol=1e-3)  # 0.3 in float16
    result = objectives.grouped_mmd(y, y_target, SCALES)
    np.testing.assert_allclose(numpy(result), expected, rtol=2e-5)


def test_inputs_of_mixed_precision():
    y, y_target = data()
    expected = mmd(y, y_target)
    mixed = mmd(y, y_target.astype("float64"), SCALES.astype("float64"))
    np.testing.assert_allclose(mixed, expected, rtol=1e-6)


def test_nan_is_not_hidden():
    y, y_target = data()
    y = y.copy()
    y[5, 3] = np.nan
    assert np.isnan(mmd(y, y_target)).tolist() == [False, True] + [False] * 4


def test_near_particles_of_many_dimensions():
    """D = 3072 and the target 0.1% away, where the Gram form of ||x - y||^2 fails."""
    rng = np.random.default_rng(6)
    y = (SIGMA_DATA * rng.standard_normal((M, 3072))).astype("float32")
    y_target = (y * (1 + 1e-3 * rng.standard_normal(y.shape))).astype("float32")
    scale = np.array([4.0], "float32")
    exact = reference.grouped_mmd(y, y_target, scale, reference.laplace, M)

    def gram(a, b):
        squared = np.sum(a * a, -1)[:, None] + np.sum(b * b, -1) - 2 * a @ b.T
        return np.expm1(-scale * np.sqrt(np.maximum(squared, 1e-16)) / 3072)

    by_gram = gram(y, y) + gram(y_target, y_target) - 2 * gram(y, y_target)
    bound = 5e-4
    assert abs(by_gram.mean() / exact.item() - 1) > 100 * bound
    np.testing.assert_allclose(mmd(y, y_target, scale), exact, rtol=bound)


@pytest.mark.parametrize("group_size", [5, 7, 48])
def test_the_group_size_must_divide_the_batch(group_size):
    y, y_target = data()
    with pytest.raises(ValueError, match="must be a multiple of `group_size`") as error:
        mmd(y, y_target, group_size=group_size)
    assert f"group_size={group_size}, accumulation_steps=1, batch size 24" in str(
        error.value
    )


@pytest.mark.parametrize("group_size", [0, -4, 1.5, None])
def test_the_group_size_must_be_a_positive_integer(group_size):
    y, y_target = data()
    with pytest.raises(ValueError, match="`group_size` must be an integer") as error:
        mmd(y, y_target, group_size=group_size)
    assert f"group_size={group_size!r}" in str(error.value)


def test_an_unknown_kernel_lists_the_known_ones():
    with pytest.raises(ValueError, match="'laplace', 'rbf', 'energy'") as error:
        mmd(*data(), kernel="linear")
    assert "kernel='linear'" in str(error.value)


@pytest.mark.parametrize(
    ("target", "scale", "message"),
    [
        ((8, 3), (1,), r"`kernel_scale` must have one entry per group.*\(1,\)"),
        ((8, 3), (3,), r"`kernel_scale` must have one entry per group.*\(3,\)"),
        ((4, 3), (2,), r"`y_target` must have the shape of `y`.*\(4, 3\)"),
    ],
)
def test_shapes_are_checked(target, scale, message):
    y, target, scale = (np.ones(s, "float32") for s in ((8, 3), target, scale))
    with pytest.raises(ValueError, match=message):
        objectives.grouped_mmd(y, target, scale, group_size=4)


def test_the_older_module_has_the_same_function():
    assert keras_imm.objective.grouped_mmd is objectives.grouped_mmd


@pytest.mark.parametrize("name", ["laplace", "rbf", "energy"])
def test_the_share_of_interaction_is_that_of_the_gradient(name):
    """Norms of the gradient's parts, by differences of the kernel in float64."""
    from keras_imm import kernels
    from keras_imm.objectives.mmd import interaction_share

    rng = np.random.default_rng(0)
    y = rng.normal(size=(6, 5))
    target = y + 0.1 * rng.normal(size=(6, 5))
    scale = np.array([1.3, 0.7])
    found = interaction_share(
        *(ops.convert_to_tensor(v.astype("float32")) for v in (y, target, scale)),
        *(kernels.get(name), 3),
    )

    def k(a, b, w):
        distance = np.linalg.norm(a - b)
        if name == "laplace":
            return np.exp(-w * distance / 5)
        return (
            -(distance**2) if name == "energy" else np.exp(-((w * distance) ** 2) / 10)
        )

    def slope(a, b, w):
        h = 1e-6 * np.eye(5)
        return np.array([(k(a + e, b, w) - k(a - e, b, w)) / 2e-6 for e in h])

    for group, w, share in zip((0, 1), scale, ops.convert_to_numpy(found), strict=True):
        ys, ts = (v[3 * group : 3 * group + 3] for v in (y, target))
        own = np.array([-slope(ys[j], ts[j], w) for j in range(3)])
        others = np.zeros((3, 5))
        for j in range(3):
            for i in {0, 1, 2} - {j}:
                others[j] += slope(ys[j], ys[i], w) - slope(ys[j], ts[i], w)
        expected = np.linalg.norm(others) / np.linalg.norm(others + own)
        assert share == pytest.approx(expected, rel=1e-3)
