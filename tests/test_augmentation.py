"""EDM augmentation against NumPy, SciPy and torch, and what its labels promise."""

import keras
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch
from backends import FLOATS, dtype_of
from keras import ops

from keras_imm.augmentation import EDMAugmentation

NAMES = ("x_flip", "y_flip", "scale", "cos", "sin", "aniso_x", "aniso_y", "x", "y")
WIDE = "float32" if keras.backend.backend() == "jax" else "float64"
DTYPES = ["float16", "bfloat16", *FLOATS]


def image(height=8, width=8, batch=12, channels=2):
    """The same few shapes in all tests: JAX compiles for each."""
    shape = (batch, height, width, channels)
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def labels(batch=12, **values):
    """Labels, all 0 but those given by name."""
    result = np.zeros((batch, 9), "float32")
    for name, value in values.items():
        result[:, NAMES.index(name)] = value
    return result


def apply(images, given, **options):
    return ops.convert_to_numpy(EDMAugmentation(**options).apply(images, given))


def turn(angle):
    return {"cos": np.cos(angle) - 1, "sin": np.sin(angle)}


def random_labels(batch=12):
    """All transforms at once, stronger than the layer draws them."""
    rng = np.random.default_rng(1)
    angle = rng.uniform(-np.pi, np.pi, batch)
    result = rng.normal(0, 2, (batch, 9))
    result[:, :2] = rng.integers(0, 2, (batch, 2))
    result[:, 3], result[:, 4] = np.cos(angle) - 1, np.sin(angle)
    return result


def forward_matrix(row, height, width):
    """The affine map of (x, y, 1) from pixel to pixel, as the table is written."""
    x_flip, y_flip, scale, cos_minus_1, sin, aniso_x, aniso_y, shift_x, shift_y = row

    def shift(x, y):
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], "float64")

    def size(x, y):
        return np.diag([x, y, 1.0])

    def rotation(angle):
        cos, sin = np.cos(angle), np.sin(angle)
        return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])

    n, direction = np.hypot(aniso_x, aniso_y), np.arctan2(aniso_y, aniso_x)
    centre = (width - 1) / 2, (height - 1) / 2
    return (
        shift(*centre)
        @ shift(shift_x * width / 8, shift_y * height / 8)
        @ (rotation(direction) @ size(2 ** (0.2 * n), 2 ** (-0.2 * n)))
        @ rotation(-direction)
        @ rotation(-np.arctan2(sin, 1 + cos_minus_1))  # y points down
        @ size(2 ** (0.2 * scale), 2 ** (0.2 * scale))
        @ size(1 - 2 * x_flip, 1 - 2 * y_flip)
        @ shift(-centre[0], -centre[1])
    )


def source_points(row, height, width):
    """Where output pixels come from: rows and columns."""
    inverse = np.linalg.inv(forward_matrix(row, height, width))
    y, x = np.mgrid[:height, :width]
    points = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)]))
    return points[1], points[0]


def keys_kernel(x):
    """Keys (1981), Equation 15: a = -1/2."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def keys_interpolation(x, rows, columns, margin=200):
    """Sums the kernel over every pixel of an image mirrored far beyond its border."""
    padded = np.pad(x, margin, mode="reflect")
    places = np.arange(padded.shape[0]) - margin, np.arange(padded.shape[1]) - margin
    row_weights = keys_kernel(rows[..., None] - places[0])
    column_weights = keys_kernel(columns[..., None] - places[1])
    return np.einsum("hwi,hwj,ij->hw", row_weights, column_weights, padded)


def test_all_transforms_at_once_against_scipy():
    x, given = image(9, 12).astype("float64"), random_labels()
    found = apply(x.astype(WIDE), given.astype(WIDE), interpolation="bilinear")
    for i, row in enumerate(given):
        points = source_points(row, 9, 12)
        for channel in range(2):
            expected = scipy.ndimage.map_coordinates(
                x[i, ..., channel], points, order=1, mode="mirror"
            )
            atol = 1e-10 if WIDE == "float64" else 2e-4
            np.testing.assert_allclose(found[i, ..., channel], expected, atol=atol)


def test_all_transforms_at_once_against_keys_equation():
    x, given = image(9, 12).astype("float64"), random_labels()
    found = apply(x.astype(WIDE), given.astype(WIDE))
    for i, row in enumerate(given):
        expected = keys_interpolation(x[i, ..., 0], *source_points(row, 9, 12))
        atol = 1e-10 if WIDE == "float64" else 2e-4
        np.testing.assert_allclose(found[i, ..., 0], expected, atol=atol)


def test_twice_the_size_against_torch():
    """The middle of the image that torch enlarges, away from its borders."""
    x = image()
    found = apply(x, labels(scale=1 / 0.2))
    large = torch.nn.functional.interpolate(
        torch.tensor(x).permute(0, 3, 1, 2),
        scale_factor=2,
        mode="bicubic",
        antialias=True,  # without it torch's kernel has a = -3/4
    )
    expected = large[:, :, 4:12, 4:12].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("given", "transform"),
    [
        (labels(x_flip=1), lambda x: np.flip(x, 2)),
        (labels(y_flip=1), lambda x: np.flip(x, 1)),
        (labels(**turn(np.pi / 2)), lambda x: np.rot90(x, 1, (1, 2))),
        (labels(**turn(-np.pi / 2)), lambda x: np.rot90(x, -1, (1, 2))),
        (labels(**turn(np.pi)), lambda x: np.rot90(x, 2, (1, 2))),
    ],
    ids=["x_flip", "y_flip", "quarter", "backwards", "half"],
)
def test_flips_and_right_angles(given, transform, interpolation):
    found = apply(image(), given, interpolation=interpolation)
    np.testing.assert_allclose(found, transform(image()), atol=1e-5)


def test_flips_are_exact():
    x = image(9, 12)
    found = apply(x, labels(x_flip=1, y_flip=1))
    np.testing.assert_array_equal(found, x[:, ::-1, ::-1])


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-3, 0), (0, 2), (2, -1)])
def test_shifts_by_whole_pixels(right, down):
    """Mirrored about the border pixel, which is not repeated."""
    x = image()
    found = apply(x, labels(x=right, y=down))  # in eighths of 8 pixels
    padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    rows, columns = slice(3 - down, 11 - down), slice(3 - right, 11 - right)
    np.testing.assert_array_equal(found, padded[:, rows, columns])


def test_stretch_goes_along_its_direction():
    """A disc becomes wide for a stretch along x, and high for one along y."""
    y, x = np.mgrid[:33, :33] - 16
    disc = (x**2 + y**2 < 36).astype("float32")[None, :, :, None]
    for name, axis in [("aniso_x", 2), ("aniso_y", 1)]:
        for sign in (1, -1):
            found = apply(disc, labels(batch=1, **{name: sign * 2.5}))[0, ..., 0] > 0.5
            along, across = found.any(2 - axis).sum(), found.any(axis - 1).sum()
            assert abs(along - 11 * 2**0.5) <= 1.5
            assert abs(across - 11 / 2**0.5) <= 1.5


def test_the_standard_deviations_are_the_units_of_labels():
    x = image()
    strong = {"scale_std": 0.4, "aniso_std": 0.6, "translation_std": 0.25}
    given = labels(scale=1.0, aniso_x=0.5, aniso_y=0.2, x=0.3, y=-0.4)
    same = labels(scale=2.0, aniso_x=1.5, aniso_y=0.6, x=0.6, y=-0.8)
    np.testing.assert_allclose(apply(x, given, **strong), apply(x, same), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 1), (2, 3)])
def test_the_smallest_images(size):
    x = image(*size)
    found = apply(x, random_labels().astype("float32"))
    assert found.shape == x.shape and np.all(np.isfinite(found))
    np.testing.assert_allclose(apply(np.ones_like(x), random_labels()), 1, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_of_zero_leave_the_image_bit_for_bit(dtype):
    """Also beside others that change, and with values no filter would return."""
    x = image()
    x[0, 0, 0, 0], x[0, 1, 1, 1] = 1e-7, 60000
    x[2, 3, 3, 0] = np.nan
    given = random_labels().astype("float32")
    given[::2] = 0
    x = ops.cast(x, dtype)
    moved = EDMAugmentation().apply(x, given)
    assert dtype_of(moved) == dtype
    x, moved = (ops.convert_to_numpy(ops.cast(v, "float32")) for v in (x, moved))
    np.testing.assert_array_equal(moved[::2], x[::2])
    assert np.all(np.max(np.abs(moved[1::2] - x[1::2]), axis=(1, 2, 3)) > 0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_images_keep_their_dtype_under_any_policy(dtype):
    layer = EDMAugmentation(probability=1.0, seed=0, dtype="mixed_float16")
    x = ops.cast(image(), dtype)
    moved, given = layer(x)
    assert (dtype_of(moved), dtype_of(given)) == (dtype, "float32")
    exact = apply(ops.convert_to_numpy(ops.cast(x, "float32")), given)
    moved = ops.convert_to_numpy(ops.cast(moved, "float32"))
    atol = {"bfloat16": 0.02, "float16": 0.003}.get(dtype, 1e-4)
    np.testing.assert_allclose(moved, exact, atol=atol)


@pytest.mark.parametrize(
    "options",
    [{"probability": 0}, {"probability": 0.0, "x_flip_probability": 0.0}],
)
def test_probability_zero_is_the_identity(options):
    x = image()
    moved, given = EDMAugmentation(**options, seed=0)(x)
    np.testing.assert_array_equal(ops.convert_to_numpy(moved), x)
    np.testing.assert_array_equal(ops.convert_to_numpy(given), np.zeros((12, 9)))


def test_images_change_where_and_only_where_labels_say():
    x, layer, changes = image(), EDMAugmentation(seed=0), []
    for _ in range(10):
        moved, given = (ops.convert_to_numpy(v) for v in layer(x))
        np.testing.assert_array_equal(moved, apply(x, given))
        changes.append(np.any(moved != x, axis=(1, 2, 3)))
        np.testing.assert_array_equal(changes[-1], np.any(given != 0, axis=1))
    assert 0.4 < np.mean(changes) < 0.9


def drawn(count=40_000, **options):
    return ops.convert_to_numpy(EDMAugmentation(seed=5, **options).draw(count))


def check_rate(found, expected):
    tolerance = 4.5 * np.sqrt(expected * (1 - expected) / found.size)
    assert abs(np.mean(found) - expected) <= tolerance


@pytest.mark.parametrize(
    ("options", "x_flip", "others"),
    [
        ({}, 0.5, 0.12),
        ({"probability": 0.3, "x_flip_probability": 0.1}, 0.05, 0.3),
        ({"probability": 0, "x_flip_probability": 1.0}, 0.5, 0.0),
        ({"probability": 1.0, "x_flip_probability": 0.0}, 0.0, 1.0),
    ],
)
def test_how_often_each_transform_is_made(options, x_flip, others):
    made = drawn(**options) != 0
    for column, rate in enumerate([x_flip, others / 2, *[others] * 7]):
        check_rate(made[:, column], rate)
    for first in (3, 5, 7):  # two labels of one transform
        np.testing.assert_array_equal(made[:, first], made[:, first + 1])
    for i, j in [(0, 1), (1, 2), (2, 3), (3, 5), (5, 7), (0, 7)]:  # independently
        check_rate(made[:, i] & made[:, j], np.mean(made[:, i]) * np.mean(made[:, j]))


def test_how_the_draws_are_distributed():
    x_flip, y_flip, scale, cos, sin, aniso_x, aniso_y, x, y = drawn(
        20_000, probability=1.0
    ).T
    assert set(x_flip) == set(y_flip) == {0, 1}
    uniform = scipy.stats.uniform(-np.pi, 2 * np.pi).cdf
    draws = [
        (scale, "norm"),
        (x, "norm"),
        (y, "norm"),
        (np.arctan2(sin, 1 + cos), uniform),
        (np.hypot(aniso_x, aniso_y), "halfnorm"),
        (np.arctan2(aniso_y, aniso_x), uniform),
    ]
    for sample, distribution in draws:
        assert scipy.stats.kstest(sample, distribution).pvalue > 1e-3
    np.testing.assert_allclose((1 + cos) ** 2 + sin**2, 1, atol=1e-5)
    samples = np.stack([sample for sample, _ in draws])
    correlations = np.corrcoef(np.concatenate([samples, [x_flip, y_flip]]))
    assert np.max(np.abs(correlations - np.eye(8))) < 4.5 / np.sqrt(20_000)


def test_a_seed_repeats_and_draws_go_on():
    x = image()
    one, same, other = (EDMAugmentation(seed=seed) for seed in (3, 3, 4))
    first, second = (ops.convert_to_numpy(one(x)[1]) for _ in range(2))
    np.testing.assert_array_equal(first, ops.convert_to_numpy(same(x)[1]))
    np.testing.assert_array_equal(second, ops.convert_to_numpy(same(x)[1]))
    assert np.any(first != second)
    assert np.any(first != ops.convert_to_numpy(other(x)[1]))
    unseeded = [ops.convert_to_numpy(EDMAugmentation()(x)[1]) for _ in range(2)]
    assert np.any(unseeded[0] != unseeded[1])


def test_in_a_model():
    """Training augments, with new draws at each step; the rest does not."""
    layer = EDMAugmentation(seed=0)
    inputs = keras.Input((8, 8, 2), dtype="float32")
    moved, given = layer(inputs)
    assert (moved.shape, given.shape) == ((None, 8, 8, 2), (None, 9))
    x = image(batch=24)
    model = keras.Model(inputs, [moved, given])
    still, zeros = model.predict(x, batch_size=12, verbose=0)
    np.testing.assert_array_equal(still, x)
    np.testing.assert_array_equal(zeros, np.zeros((24, 9)))

    state = layer.seed_generator.state
    before = ops.convert_to_numpy(ops.copy(state.value))
    flat = keras.layers.Concatenate()([keras.layers.Flatten()(moved), given])
    trained = keras.Model(inputs, keras.layers.Dense(1)(flat))
    trained.compile("sgd", loss="mse")
    trained.fit(x, np.zeros((24, 1)), batch_size=12, verbose=0)
    assert np.any(ops.convert_to_numpy(state.value) != before)
    assert np.all(np.isfinite(trained.get_weights()[0]))


def test_the_output_of_half_precision_images_is_known_beforehand():
    inputs = keras.Input((8, 8, 2), dtype="float16")
    moved, given = EDMAugmentation()(inputs)
    assert (moved.dtype, given.dtype) == ("float16", "float32")


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="other backends' tensors cannot be made inside a tf.data pipeline",
)
def test_in_a_tf_data_pipeline():
    import tensorflow as tf

    x = image(batch=20)
    x = np.concatenate([x[:8], x[:8], x[:4]])
    layer = EDMAugmentation(seed=0)
    batches = list(tf.data.Dataset.from_tensor_slices(x).batch(8).map(layer))
    assert [len(moved) for moved, _ in batches] == [8, 8, 4]
    for part, (moved, given) in zip((x[:8], x[8:16], x[16:]), batches, strict=True):
        expected = apply(part, given.numpy())
        np.testing.assert_allclose(moved.numpy(), expected, atol=1e-5)
    assert np.any(batches[0][1].numpy() != batches[1][1].numpy())


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="compiles with JAX")
def test_compiled_by_jax():
    import jax

    x, given = image(9, 12), random_labels().astype("float32")
    found = jax.jit(EDMAugmentation().apply)(x, given)
    np.testing.assert_allclose(found, apply(x, given), atol=1e-4)


def test_config():
    options = {
        "probability": 0.15,
        "x_flip_probability": 0.5,
        "scale_std": 0.1,
        "aniso_std": 0.3,
        "translation_std": 0.05,
        "interpolation": "bilinear",
        "seed": 7,
        "name": "augment",
    }
    layer = EDMAugmentation(**options)
    serialized = keras.saving.serialize_keras_object(layer)
    assert serialized["registered_name"] == "keras_imm>EDMAugmentation"
    again = keras.saving.deserialize_keras_object(serialized)
    config = again.get_config()
    assert config == layer.get_config()
    assert {key: config[key] for key in options} == options
    x = image()
    for one, other in zip(layer(x), again(x), strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("probability", 1.5, r"a number in \[0, 1\]"),
        ("probability", None, r"a number in \[0, 1\]"),
        ("x_flip_probability", -0.1, r"a number in \[0, 1\]"),
        ("scale_std", 0, "a finite number above 0"),
        ("aniso_std", -0.2, "a finite number above 0"),
        ("translation_std", float("inf"), "a finite number above 0"),
        ("interpolation", "nearest", "one of 'bicubic', 'bilinear'"),
        ("seed", -1, "an integer of at least 0"),
        ("seed", 0.5, "an integer of at least 0"),
    ],
)
def test_wrong_arguments(name, value, allowed):
    with pytest.raises(ValueError, match=f"`{name}` must be {allowed}.*{value}"):
        EDMAugmentation(**{name: value})


@pytest.mark.parametrize("shape", [(8, 8, 3), (2, 2, 8, 8, 3), (2, 0, 8, 3)])
def test_images_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"`images` must be of shape \(batch, height"):
        EDMAugmentation()(np.zeros(shape, "float32"))


def test_images_of_unknown_size():
    with pytest.raises(ValueError, match="only the batch size may be unknown"):
        EDMAugmentation()(keras.Input((None, 8, 3)))


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_images_that_are_not_float(dtype):
    with pytest.raises(ValueError, match=f"`images` must be float.*{dtype}"):
        EDMAugmentation()(np.zeros((2, 8, 8, 3), dtype))


@pytest.mark.parametrize("shape", [(2, 8), (3, 9), (9,), (2, 9, 1)])
def test_labels_of_a_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"`labels` must be of shape \(batch, 9\)"):
        EDMAugmentation().apply(image(batch=2), np.zeros(shape, "float32"))
