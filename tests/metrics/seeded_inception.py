"""The weights that the golden features were computed with, drawn from a seed."""

import keras
import numpy as np

from keras_imm.metrics import inception, inception_blocks


def seeded_weights():
    """{name of the PyTorch conversion: array}, without the counters of batches."""
    rng = np.random.default_rng(2015)
    return {name: _draw(rng, name, shape) for name, shape in sorted(_shapes().items())}


def _draw(rng, name, shape):
    z = rng.standard_normal(shape)
    if name.endswith("conv.weight"):
        z *= np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith("running_var"):
        z = np.exp(0.1 * z)
    elif name.endswith("bn.weight"):
        z = 1 + 0.1 * z
    elif name == "fc.weight":
        z /= np.sqrt(shape[1])
    else:
        z *= 0.1
    return z.astype("float32")


def _shapes():
    convolutions = inception_blocks.Convolutions("zeros")
    images = keras.Input((None, None, 3), dtype="uint8")
    _, classifier = inception._outputs(convolutions, images)
    shapes = {}
    for name, variable, _ in inception._variables(convolutions.made, classifier):
        shape = tuple(variable.shape)
        if len(shape) == 4:  # (row, column, in, out) here
            shape = (shape[3], shape[2], *shape[:2])
        shapes[name] = shape[::-1] if name == "fc.weight" else shape
    return shapes
