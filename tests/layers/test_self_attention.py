import keras
import numpy as np
import pytest
from keras import ops

from keras_imm.layers import SelfAttention

HEADS, HEAD_DIM = 4, 12
SIZE = HEADS * HEAD_DIM


def normalize(x):
    variance = x.var(axis=-1, keepdims=True)
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + 1e-5)


def attention(tokens, layer):
    """softmax(q k^T / sqrt(head_dim)) v in float64, one head at a time."""
    qkv = tokens @ weight(layer.qkv.kernel) + weight(layer.qkv.bias)
    query, key, value = np.split(qkv, 3, axis=-1)
    heads = []
    for head in range(HEADS):
        part = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
        q, k, v = query[..., part], key[..., part], value[..., part]
        if layer.qk_norm:
            q = normalize(q) * weight(layer.query_norm.gamma)
            q = q + weight(layer.query_norm.beta)
            k = normalize(k) * weight(layer.key_norm.gamma)
            k = k + weight(layer.key_norm.beta)
        logits = q @ k.swapaxes(1, 2) / np.sqrt(HEAD_DIM)
        odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
        heads.append(odds / odds.sum(axis=-1, keepdims=True) @ v)
    merged = np.concatenate(heads, axis=-1)
    return merged @ weight(layer.projection.kernel) + weight(layer.projection.bias)


def weight(variable):
    return ops.convert_to_numpy(variable).astype("float64")


def layer_and_tokens(**arguments):
    layer = SelfAttention(HEADS, **arguments)
    layer.build((None, 16, SIZE))
    rng = np.random.default_rng(0)
    for variable in layer.trainable_variables:
        variable.assign(0.3 * rng.standard_normal(variable.shape))
    return layer, rng.standard_normal((4, 16, SIZE)).astype("float32")


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_equals_the_equations(qk_norm, scale):
    layer, tokens = layer_and_tokens(qk_norm=qk_norm)
    result = ops.convert_to_numpy(layer(scale * tokens))
    expected = attention(scale * tokens, layer)
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_float16", 4e-3), ("mixed_bfloat16", 3e-2)]
)
def test_half_precision(policy, tolerance):
    layer, tokens = layer_and_tokens(dtype=policy)
    result = ops.convert_to_numpy(ops.cast(layer(tokens), "float32"))
    expected = attention(tokens, layer)
    assert np.linalg.norm(result - expected) < tolerance * np.linalg.norm(expected)


def test_qkv_is_xavier_over_the_fused_kernel():
    keras.utils.set_random_seed(0)
    layer = SelfAttention(4)
    layer.build((None, 7, 64))
    limit = np.sqrt(6 / (64 + 3 * 64))
    largest = np.abs(weight(layer.qkv.kernel)).max()
    assert 0.98 * limit < largest <= limit


def test_initializers_are_those_given():
    """As the U-Net gives them: a fifth of the variance, and nearly none."""
    keras.utils.set_random_seed(0)
    uniform = keras.initializers.VarianceScaling(0.2, "fan_avg", "uniform")
    layer = SelfAttention(
        1, qkv_initializer=uniform, projection_initializer=keras.initializers.Zeros()
    )
    layer.build((None, 7, 64))
    limit = np.sqrt(0.2) * np.sqrt(6 / (64 + 3 * 64))
    assert 0.98 * limit < np.abs(weight(layer.qkv.kernel)).max() <= limit
    assert not weight(layer.projection.kernel).any()
    restored = SelfAttention.from_config(layer.get_config())
    assert restored.qkv_initializer.get_config() == uniform.get_config()
    assert isinstance(restored.projection_initializer, keras.initializers.Zeros)


def test_initializers_may_be_names():
    layer = SelfAttention(2, qkv_initializer="ones", projection_initializer="zeros")
    layer.build((None, 7, 8))
    assert (weight(layer.qkv.kernel) == 1).all()
    assert not weight(layer.projection.kernel).any()


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match=r"`num_heads` must divide.*is 64.*=3"):
        SelfAttention(3).build((None, 7, 64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "`num_heads` must be an integer of at least 1.*=0"),
        ({"num_heads": 2, "qk_norm": 1}, "`qk_norm` must be True or False.*=1"),
        ({"num_heads": 2, "qkv_initializer": "xavier"}, "initializer.*xavier"),
        ({"num_heads": 2, "projection_initializer": 3}, "initializer.*3"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SelfAttention(**arguments)
