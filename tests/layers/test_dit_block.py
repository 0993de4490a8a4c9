import math

import numpy as np
import pytest
from keras import ops

from keras_imm.layers import DiTBlock

SIZE, HEADS, TOKENS, BATCH = 48, 4, 16, 4


def weight(variable):
    return ops.convert_to_numpy(variable).astype("float64")


def dense(x, layer):
    return x @ weight(layer.kernel) + weight(layer.bias)


def norm(x, epsilon):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)


def tanh_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def attend(x, layer):
    qkv = dense(x, layer.qkv).reshape(*x.shape[:2], 3, HEADS, SIZE // HEADS)
    query, key, value = np.moveaxis(qkv, 2, 0)
    logits = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(SIZE // HEADS)
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    odds = odds / odds.sum(axis=-1, keepdims=True)
    attended = np.einsum("bhqk,bkhd->bqhd", odds, value).reshape(x.shape)
    return dense(attended, layer.projection)


def block_output(tokens, conditioning, block, gelu=tanh_gelu, epsilon=1e-6):
    """An adaLN-Zero block in float64; modulations in the published order."""
    modulation = dense(conditioning, block.modulation)
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = np.split(modulation, 6, -1)
    modulated = norm(tokens, epsilon) * (1 + scale_1) + shift_1
    tokens = tokens + gate_1 * attend(modulated, block.attention)
    modulated = norm(tokens, epsilon) * (1 + scale_2) + shift_2
    hidden = gelu(dense(modulated, block.mlp_hidden))
    return tokens + gate_2 * dense(hidden, block.mlp_output)


def block_and_inputs(token_scale=1.0, **arguments):
    block = DiTBlock(HEADS, **arguments)
    block.build((None, TOKENS, SIZE), (None, 1, SIZE))
    rng = np.random.default_rng(0)
    for variable in block.trainable_variables:
        variable.assign(0.3 * rng.standard_normal(variable.shape))
    tokens = token_scale * rng.standard_normal((BATCH, TOKENS, SIZE)).astype("float32")
    return block, tokens, rng.standard_normal((BATCH, 1, SIZE)).astype("float32")


def relative_error(result, expected):
    return np.abs(result - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("token_scale", [1.0, 100.0])
def test_equals_the_equations_with_tanh_gelu(token_scale):
    block, tokens, conditioning = block_and_inputs(token_scale)
    result = ops.convert_to_numpy(block(tokens, conditioning))
    assert relative_error(result, block_output(tokens, conditioning, block)) < 5e-6


def test_gelu_is_the_tanh_approximation():
    # Pre-activations of size 2, where both forms are furthest apart.
    block, tokens, conditioning = block_and_inputs()
    result = ops.convert_to_numpy(block(tokens, conditioning))
    exact = block_output(tokens, conditioning, block, gelu=exact_gelu)
    assert relative_error(result, exact) > 2e-5


def test_layer_norm_epsilon():
    # Tokens of variance 1e-6, where epsilon is half of what they are divided by.
    block, tokens, conditioning = block_and_inputs(token_scale=1e-3)
    conditioning = np.zeros_like(conditioning)
    block.modulation.bias.assign(np.repeat([0, 0, 1e-3, 0, 0, 1e-3], SIZE))
    result = ops.convert_to_numpy(block(tokens, conditioning))
    assert relative_error(result, block_output(tokens, conditioning, block)) < 1e-5
    other = block_output(tokens, conditioning, block, epsilon=1e-5)
    assert relative_error(result, other) > 1e-2


def test_a_new_block_is_the_identity():
    block = DiTBlock(HEADS)
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((BATCH, TOKENS, SIZE)).astype("float32")
    conditioning = rng.standard_normal((BATCH, 1, SIZE)).astype("float32")
    result = ops.convert_to_numpy(block(tokens, conditioning))
    np.testing.assert_array_equal(result, tokens)


def test_dropout_falls_on_the_attention_and_on_both_layers_of_the_perceptron():
    block, tokens, conditioning = block_and_inputs(dropout=0.5)
    # gate_1 = 1 and gate_2 = 0 leaves the attention, and the other way around.
    conditioning = np.zeros_like(conditioning)
    for gates in ([0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]):
        block.modulation.bias.assign(np.repeat(gates, SIZE).astype("float32"))
        kept = ops.convert_to_numpy(block(tokens, conditioning)) - tokens
        dropped = ops.convert_to_numpy(block(tokens, conditioning, training=True))
        dropped = dropped - tokens
        # The last dropout of the branch zeroes elements...
        zeroed = np.abs(dropped) < 1e-7
        assert 0.35 < zeroed.mean() < 0.65
        if gates[2]:  # ... and doubles the others;
            np.testing.assert_allclose(dropped[~zeroed], 2 * kept[~zeroed], atol=1e-5)
        else:  # ... inside the perceptron there is a second one.
            assert np.abs(dropped - 2 * kept)[~zeroed].mean() > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 2.0}, "`num_heads` must be an integer of at least 1.*=2.0"),
        ({"num_heads": 2, "mlp_ratio": 0}, "`mlp_ratio` must be a finite.*=0"),
        ({"num_heads": 2, "dropout": 1.0}, r"`dropout` must be.*\[0, 1\).*=1.0"),
        ({"num_heads": 2, "seed": -1}, "`seed` must be an integer of at least 0.*=-1"),
        ({"num_heads": 2, "qk_norm": None}, "`qk_norm` must be True or.*=None"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiTBlock(**arguments)
