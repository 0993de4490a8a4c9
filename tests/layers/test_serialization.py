import keras
import pytest

from keras_imm import layers

EXAMPLES = [
    layers.DiTBlock(2, mlp_ratio=3, qk_norm=True, dropout=0.1, seed=7),
    layers.FinalLayer((8, 6, 3), 2),
    layers.FourierEmbedding(16, scale=2.0, seed=3, dtype="mixed_bfloat16"),
    layers.PatchEmbedding(4, 16),
    layers.PositionalEmbedding(16, max_period=100.0),
    layers.SelfAttention(2, qk_norm=True, dtype="mixed_bfloat16"),
    layers.SinCosPositionEmbedding((4, 3)),
    layers.TimestepEmbedding(16, frequency_dim=64, max_period=100.0),
    layers.UNetBlock(
        8, "down", (1, 3, 3, 1), attention=True, dropout=0.1, seed=5, dtype="float16"
    ),
]


@pytest.mark.parametrize("layer", EXAMPLES, ids=lambda layer: layer.name)
def test_round_trip_keeps_every_argument(layer):
    serialized = keras.saving.serialize_keras_object(layer)
    assert serialized["registered_name"] == f"keras_imm>{type(layer).__name__}"
    restored = keras.saving.deserialize_keras_object(serialized)
    assert type(restored) is type(layer)
    for name, value in vars(layer).items():
        if isinstance(value, (bool, int, float, str, tuple)):
            assert getattr(restored, name) == value, name
