"""Models to export, and requests to what was exported."""

import keras
import numpy as np
import pytest
from small_dit import small_dit

import keras_imm

NUM_CLASSES = 3
GUIDANCE = 1.5
WIDE = (-20.0, 20.0)  # what an untrained model makes
SIGNATURES = [
    *("flow_map", "generate_1_steps", "generate_2_steps", "generate_from_noise"),
    *("serving_default", "serving_png"),
]
SEEDS = np.array([1, 2**32 + 1, 1, -7, 2**63 - 1, 2**40, 1], "int64")
LABELS = np.array([0, 0, 0, 1, 2, 3, 1], "int32")
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="what is written is the same on all backends, and exports take seconds",
)
in_a_child = pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="there is no child process"
)


def trained_model(num_classes=NUM_CLASSES):
    """A model whose averages differ from its weights."""
    model = keras_imm.IMM(small_dit(num_classes=num_classes), seed=0)
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    model.compile(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9))
    images = 0.5 * rng.standard_normal((32, 4, 4, 1)).astype("float32")
    labels = [np.arange(32) % num_classes] if num_classes else []
    model.fit(images, *labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return model


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, 4, 4, 1)).astype("float32")
    return noise, rng.integers(0, NUM_CLASSES + 1, count).astype("int32")


def requests():
    noise, label = rows(7)
    scale = np.linspace(0.5, 3.0, 7).astype("float32")
    seeds = {"seed": SEEDS, "label": LABELS}
    times = {"t": np.linspace(0.5, 0.9, 7), "s": np.linspace(0.0, 0.5, 7)}
    return {
        "serving_default": seeds,
        "serving_png": seeds,
        "generate_1_steps": seeds | {"guidance_scale": scale},
        "generate_2_steps": seeds | {"guidance_scale": np.full(7, 1.5, "float32")},
        "generate_from_noise": {
            **{"noise": noise, "label": label},
            "guidance_scale": np.full(7, GUIDANCE, "float32"),
        },
        "flow_map": {
            **{name: value.astype("float32") for name, value in times.items()},
            **{"x_t": noise, "label": label, "guidance_scale": scale},
        },
    }
