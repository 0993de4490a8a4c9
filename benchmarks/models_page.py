"""Writes docs/models.md: presets, recipes and checkpoints.

    KERAS_BACKEND=torch python benchmarks/models_page.py > docs/models.md

Parameters are counted on networks that it builds, the largest of 2.5 GiB; FIDs are the
published ones that the recipes hold.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app

HEAD = """\
# Presets, recipes and checkpoints

Written by `python benchmarks/models_page.py`. The FIDs are the paper's
([Zhou et al., 2025](https://arxiv.org/abs/2503.07565)), on 50,000 samples; they have
not been measured with this library.

`import keras_imm` comes first in every command."""

PRESETS = """\
## Presets

A network with new weights. Trainable parameters: DiT at 32x32x4 and 1000 classes, U-Net
at 32x32x3 without labels; both with two time inputs.

| preset | trainable parameters | command |
|---|---|---|"""

RECIPES = """\
## Recipes

A compiled model with new weights and the settings of one published experiment:
`keras_imm.recipes.describe(name)` prints them all. The CIFAR-10 network takes
augmentation labels, for which it has 1,152 parameters more than its preset.

| recipe | preset | published FID (steps) | command |
|---|---|---|---|"""

CHECKPOINTS = """\
## Checkpoints

The published weights, from [lumaai/imm](https://huggingface.co/lumaai/imm) on the
Hugging Face Hub (`pip install "keras_imm[hub]"`), or from a path in place of the name.
The files are read as data; nothing in them is executed. ImageNet models make latents of
the Stable Diffusion autoencoder, not pixels. The weights have their authors' licence.

| checkpoint | network | published FID (steps) | command |
|---|---|---|---|"""

FOOT = """\
Sampling as published:

```python
model = keras_imm.checkpoints.load_official("imagenet256_ts_a2")
latents = model.generate(labels=[207, 360], num_steps=8, guidance_scale=1.5)

model = keras_imm.checkpoints.load_official("cifar10")
images = model.generate(num_samples=16, num_steps=2, time_grid=[1.4])
```

A `.keras` file of a checkpoint, for `keras.models.load_model` on any backend:

    python -m keras_imm.checkpoints convert imagenet256_ts_a2 model.keras

Other labels, to fine-tune on: `keras_imm.checkpoints.with_num_classes(model, 10)`."""


def count_presets():
    """Trainable parameters by preset."""
    import math

    from keras_imm.backbones import DiT, UNet, dit, unet

    counts = {}
    for name in (*dit.PRESETS, *unet.PRESETS):
        if name in dit.PRESETS:
            network = DiT.from_preset(name, image_shape=(32, 32, 4), num_classes=1000)
        else:
            network = UNet.from_preset(name)
        network.build()
        counts[name] = sum(math.prod(v.shape) for v in network.trainable_variables)
    return counts


def page(counts):
    """The page, given the trainable parameters by preset."""
    from keras_imm import recipes
    from keras_imm.backbones import dit
    from keras_imm.checkpoints.hub import PUBLISHED

    lines = [HEAD, "", PRESETS]
    for name, count in counts.items():
        if name in dit.PRESETS:
            call = f'DiT.from_preset("{name}", (32, 32, 4), num_classes=1000)'
        else:
            call = f'UNet.from_preset("{name}")'
        lines.append(f"| {name} | {count:,} | `keras_imm.backbones.{call}` |")
    lines += ["", RECIPES]
    for name in recipes.names():
        recipe = recipes.get(name)
        lines.append(
            f"| {name} | {recipe.preset} | {fids(recipe)} "
            f'| `keras_imm.recipes.build("{name}")` |'
        )
    lines += ["", CHECKPOINTS]
    for name, published in PUBLISHED.items():
        recipe = recipes.get(published.recipe)
        lines.append(
            f"| {name} | {recipe.preset}, second time {recipe.second_time} "
            f"| {fids(recipe)} "
            f'| `keras_imm.checkpoints.load_official("{name}")` |'
        )
    return "\n".join([*lines, "", FOOT])


def fids(recipe):
    return ", ".join(f"{fid:.2f} ({steps})" for steps, fid in recipe.fid)


def main(_):
    print(page(count_presets()))


if __name__ == "__main__":
    app.run(main)
