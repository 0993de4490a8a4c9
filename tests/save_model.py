"""Trains a small model and saves it in both formats, with what it then makes.

    KERAS_BACKEND=jax python tests/save_model.py FOLDER

Run by test_saving.py in a process of its own, to write under another backend.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import ops
from small_dit import small_dit

import keras_imm

LABELS = (np.arange(16) % 3).astype("int32")
IMAGES = np.random.default_rng(1).normal(0, 0.5, (16, 4, 4, 1)).astype("float32")
NOISE = np.random.default_rng(2).normal(size=(4, 4, 4, 1)).astype("float32")


def new_model() -> keras_imm.IMM:
    """A compiled model with dropout, so with more than one random stream."""
    model = keras_imm.IMM(
        small_dit(dropout=0.1),
        time_mapping=keras_imm.time_mappings.EtaDecrement(k=10),
        seed=3,
    )
    model.compile(
        keras.optimizers.AdamW(1e-2, epsilon=1e-8, use_ema=True, ema_momentum=0.8)
    )
    return model


def train(model: keras_imm.IMM, steps: int = 3) -> None:
    for _ in range(steps):
        model.train_on_batch(IMAGES, LABELS)


def state(model: keras_imm.IMM) -> dict[str, np.ndarray]:
    """All that a saved model has to bring back, and images from fixed noise."""
    optimizer = {
        f"optimizer_{i}": ops.convert_to_numpy(v)
        for i, v in enumerate(model.optimizer.variables)
    }
    streams = [
        ops.convert_to_numpy(v).astype("int64")
        for v in model.non_trainable_variables
        if v.name.startswith("seed_generator_state")
    ]
    images = {
        f"images_{weights}": model.generate(
            LABELS[:4], num_steps=2, noise=NOISE, weights=weights
        )
        for weights in ("ema", "raw")
    }
    return optimizer | images | {"streams": np.stack(streams)}


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    model = new_model()
    train(model)
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    np.savez(folder / "state.npz", **state(model))
