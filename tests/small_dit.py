"""The smallest network that has all parts of a DiT."""

import keras_imm


def small_dit(
    num_classes: int = 3, dropout: float = 0.0, dtype: str | None = None
) -> keras_imm.backbones.DiT:
    return keras_imm.backbones.DiT(
        image_shape=(4, 4, 1),
        patch_size=2,
        hidden_size=16,
        depth=1,
        num_heads=2,
        num_classes=num_classes,
        dropout=dropout,
        dtype=dtype,
    )
