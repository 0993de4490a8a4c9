import keras
import numpy as np
import pytest
import unet_formulas
from backends import FLOATS, dtype_of
from keras import ops

from keras_imm.layers import UNetBlock

SHAPE = (2, 4, 6, 8)
RNG = np.random.default_rng(0)
X = RNG.standard_normal(SHAPE).astype("float32")
EMBEDDING = RNG.standard_normal((2, 12)).astype("float32")
TAPS = (1, 3, 3, 1)


def block(filters=8, **arguments):
    layer = UNetBlock(filters, **arguments)
    layer.build((None, *SHAPE[1:]), (None, 12))
    rng = np.random.default_rng(1)
    for variable in layer.trainable_variables:
        variable.assign(0.4 * rng.standard_normal(variable.shape))
    return layer


def output(layer, **kwargs):
    return ops.convert_to_numpy(ops.cast(layer(X, EMBEDDING, **kwargs), "float32"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({}, SHAPE),
        ({"filters": 16}, (2, 4, 6, 16)),
        ({"resample": "down"}, (2, 2, 3, 8)),
        ({"resample": "down", "resample_filter": TAPS}, (2, 2, 3, 8)),
        ({"resample": "up"}, (2, 8, 12, 8)),
        ({"resample": "up", "resample_filter": TAPS, "filters": 16}, (2, 8, 12, 16)),
        ({"attention": True}, SHAPE),
        ({"resample": "down", "attention": True}, (2, 2, 3, 8)),
    ],
    ids=str,
)
def test_equals_the_equations(arguments, shape, dtype):
    layer = block(**arguments, dtype=dtype)
    result = ops.convert_to_numpy(layer(X.astype(dtype), EMBEDDING.astype(dtype)))
    expected = unet_formulas.block(
        X,
        EMBEDDING,
        layer,
        resample=arguments.get("resample"),
        taps=arguments.get("resample_filter", (1, 1)),
        attends=arguments.get("attention", False),
    )
    assert result.shape == shape == layer.compute_output_shape(SHAPE, (2, 12))
    tolerance = unet_formulas.TOLERANCES[dtype] * np.abs(expected).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


def test_projects_only_what_changes_shape():
    assert block().skip_conv is None
    for arguments in ({"filters": 16}, {"resample": "up"}, {"resample": "down"}):
        assert block(**arguments).skip_conv is not None


def test_published_initialisation():
    keras.utils.set_random_seed(0)
    layer = UNetBlock(64, attention=True)
    layer.build((None, 4, 4, 32), (None, 128))
    attention = layer.self_attention
    for part, fans, scale in [
        (layer.input_conv, 9 * (32 + 64), 1.0),
        (layer.skip_conv, 32 + 64, 1.0),
        (layer.embedding_dense, 128 + 64, 1.0),
        (layer.output_conv, 9 * (64 + 64), 1e-5),
        (attention.qkv, 64 + 3 * 64, np.sqrt(0.2)),
        (attention.projection, 64 + 64, 1e-5),
    ]:
        limit = scale * np.sqrt(6 / fans)
        largest = np.abs(unet_formulas.weight(part.kernel)).max()
        assert 0.98 * limit < largest <= 1.0001 * limit, part.name
        assert not unet_formulas.weight(part.bias).any(), part.name


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(policy):
    layer = block(16, resample="down", attention=True, dtype=policy)
    result = layer(X, EMBEDDING)
    assert dtype_of(result) == policy.removeprefix("mixed_")
    expected = unet_formulas.block(X, EMBEDDING, layer, resample="down", attends=True)
    difference = np.linalg.norm(
        ops.convert_to_numpy(ops.cast(result, "float32")) - expected
    )
    assert difference < 3e-2 * np.linalg.norm(expected)


class TestDropout:
    def test_is_between_the_second_activation_and_the_second_convolution(self):
        """Without that convolution's weights, no mask changes anything."""
        layer = block(dropout=0.5)
        assert np.abs(output(layer, training=True) - output(layer)).max() > 0.1
        layer.output_conv.kernel.assign(np.zeros((3, 3, 8, 8)))
        np.testing.assert_allclose(
            output(layer, training=True), output(layer), atol=1e-6
        )

    def test_is_inactive_outside_training(self):
        np.testing.assert_allclose(
            output(block(dropout=0.5)), output(block()), atol=1e-6
        )

    def test_keeps_the_mean(self):
        layer = block(dropout=0.5)
        mean = np.mean([output(layer, training=True) for _ in range(200)], axis=0)
        expected = output(layer)
        error = np.linalg.norm(mean - expected) / np.linalg.norm(expected)
        assert error < 0.15

    def test_seed_decides_the_masks(self):
        first, same, other = (
            output(block(dropout=0.5, seed=seed), training=True) for seed in (5, 5, 6)
        )
        np.testing.assert_allclose(first, same, atol=1e-6)
        assert np.abs(first - other).max() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filters": 3}, "`filters` must be an integer of at least 4.*=3"),
        ({"filters": 10}, "`filters` must have channels that split.*=10"),
        ({"filters": 144}, "`filters` must have .* multiple of 32 above.*=144"),
        ({"filters": True}, "`filters` must be an integer.*=True"),
        ({"filters": 8, "resample": "half"}, "`resample` must be one of .*='half'"),
        ({"filters": 8, "resample": 2}, "`resample` must be one of 'down', 'up'.*=2"),
        ({"filters": 8, "resample_filter": (1, 2, 1)}, "`resample_filter` must be.*2"),
        ({"filters": 8, "attention": 1}, "`attention` must be True or False.*=1"),
        ({"filters": 8, "dropout": 1.0}, r"`dropout` must be a number in \[0, 1\).*=1"),
        ({"filters": 8, "seed": 0.5}, "`seed` must be an integer of at least 0.*=0.5"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNetBlock(**arguments)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"`x` must have channels.*\(None, 4, 4, 3\)"):
        UNetBlock(8).build((None, 4, 4, 3), (None, 12))
    for shape in ((None, 4, 5, 8), (None, 3, 4, 8)):
        with pytest.raises(ValueError, match="`x` must have an even height and width"):
            UNetBlock(8, resample="down").build(shape, (None, 12))


def test_numpy_integers_are_integers():
    layer = block(np.int64(8), dropout=0.1, seed=np.int32(3))
    assert type(layer.filters) is type(layer.seed) is int
