"""What networks have in common whose outputs metrics compare."""

from typing import Any

import keras
import numpy as np

from keras_imm import backend
from keras_imm.validation import check_integer


class FeatureNetwork(keras.Model):
    """A fixed network from images to a dictionary of outputs, in full float32.

    Whatever the framework multiplies float32 with: TensorFloat-32, which is the default
    of some on GPUs, changes features. Under TensorFlow this holds for `predict`,
    `predict_on_batch` and eager calls; a `tf.function` of your own around the network
    multiplies as TensorFlow is told to.

    A subclass calls `super().__init__(inputs, outputs)` with a dictionary of outputs.
    """

    def call(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with backend.full_precision():  # JAX traces inside
            return super().call(inputs, *args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with backend.full_precision():  # TensorFlow runs inside
            return super().predict(*args, **kwargs)

    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        with backend.full_precision():
            return super().predict_on_batch(*args, **kwargs)

    def in_batches(self, images: np.ndarray, batch_size: int) -> dict[str, np.ndarray]:
        """The outputs for images, in batches of one size, so that one is compiled.

        Args:
            images: What the network takes, shape (num_images, ...).
            batch_size: Images in one pass, at least 1; rounded up to a multiple of the
                devices that share a batch under JAX.

        Returns:
            Dictionary from output to array (num_images, ...).
        """
        check_integer("batch_size", batch_size, at_least=1)
        batch_size = _shared(min(batch_size, len(images)))
        found = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            missing = [(0, batch_size - len(batch)), *[(0, 0)] * (batch.ndim - 1)]
            output = self.predict_on_batch(np.pad(batch, missing))
            found.append({name: part[: len(batch)] for name, part in output.items()})
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _shared(batch_size):
    """At least `batch_size`, and as many for each device of `keras.distribution`."""
    distribution = keras.distribution.distribution()
    devices = getattr(distribution, "num_model_replicas", 1)
    return -(-batch_size // devices) * devices
