"""Trains a small model and saves it as a preset, with what it then makes.

    KERAS_BACKEND=jax python tests/save_preset.py FOLDER

Run by test_presets.py in a process of its own, to write under another backend.
"""

import pathlib
import sys

import numpy as np
import save_model

import keras_imm

PLAN = keras_imm.samplers.SamplingPlan(
    num_steps=3, guidance_scale=1.5, guidance_interval=(0.2, 0.9)
)


def trained_model() -> keras_imm.IMM:
    """A model whose averaged weights are not its own, with all that goes with it."""
    model = save_model.new_model()
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:  # a new network returns zero
        v.assign(0.1 * rng.standard_normal(v.shape).astype("float32"))
    save_model.train(model)
    model.sampling_plan = PLAN
    model.pixels = keras_imm.Pixels(scale=40.0, offset=90.0)
    model.class_names = ["Bag", "Boot", "Coat"]
    return model


def samples(model: keras_imm.FlowMapModel, **options) -> np.ndarray:
    return model.generate(save_model.LABELS[:4], noise=save_model.NOISE, **options)


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    model = trained_model()
    model.save_to_preset(folder / "preset")
    loaded = keras_imm.FlowMapModel.from_preset(folder / "preset")
    np.savez(folder / "samples.npz", trained=samples(model), preset=samples(loaded))
