"""The network that the FID is defined on."""

import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_imm.files.checksum import sha256
from keras_imm.files.downloads import fetch_url
from keras_imm.files.paths import user_path
from keras_imm.files.pickled_arrays import load_torch
from keras_imm.metrics import inception_blocks as blocks
from keras_imm.metrics.checks import check_images
from keras_imm.metrics.feature_network import FeatureNetwork

FILENAME = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILENAME}"
CHECKSUM = "6726825d"  # how the SHA-256 of the file begins
TAPS = ("64", "192", "768", "spatial", "2048", "logits_unbiased", "logits")


@keras.saving.register_keras_serializable(package="keras_imm")
class InceptionV3(FeatureNetwork):
    """The InceptionV3 of 2015-12-05, on whose features the FID is defined.

    It resizes images to 299x299 as TensorFlow 1 did, and pools as that network did:
    without counting the padding, and by the maximum in the last block. Its outputs are

    - `"64"`, `"192"`, `"768"`, `"2048"`: features of that many channels, averaged over
      the image; the FID, KID, precision and recall take `"2048"`;
    - `"spatial"`: the first 7 channels of `mixed_6/conv` of the original graph (the
      17x17x192 output of `Mixed_6d.branch1x1` after its ReLU), flattened row by row to
      2023 numbers, which the sFID takes;
    - `"logits_unbiased"`: the 1,008 logits without the bias, which the Inception Score
      takes; `"logits"`: with it.

    Everything is computed in full float32, whatever Keras's dtype policy and whatever
    the framework multiplies float32 with: TensorFloat-32, which is the default of some
    on GPUs, changes features by 1.6e-4 of their range. Under TensorFlow this holds for
    `features`, `predict`, `predict_on_batch` and eager calls; a `tf.function` of your
    own around the network multiplies as TensorFlow is told to.

    Args:
        weights: "fid" for the published weights, fetched once to Keras's cache; the
            path of that file (`weights-inception-2015-12-05-6726825d.pth`; PyTorch is
            not needed to read it); or None for random ones.
        taps: Names of the outputs, of those above.

    Call arguments:
        inputs: uint8 images in [0, 255], shape (batch, H, W, 3), of any size.

    Returns:
        Dictionary from tap to float32 tensor (batch, features).

    Raises:
        ValueError: If a tap is not known, or the file is not the weights of this
            network.
        OSError: If the weights cannot be fetched; the message says what to do.

    Example:

    ```python
    network = keras_imm.metrics.InceptionV3(weights=None, taps=["2048"])
    images = np.zeros((4, 32, 32, 3), "uint8")
    network.features(images)["2048"]  # (4, 2048)
    ```

    Reference:
        - [Szegedy et al., 2015](https://arxiv.org/abs/1512.00567)
        - [Heusel et al., 2017](https://arxiv.org/abs/1706.08500)
        - [Nash et al., 2021](https://arxiv.org/abs/2103.03841), the sFID, with the
          channels of the evaluator of Dhariwal and Nichol, 2021
    """

    def __init__(
        self,
        weights: str | os.PathLike[str] | None = "fid",
        taps: Sequence[str] = ("2048", "spatial", "logits_unbiased"),
        **kwargs: Any,
    ):
        taps = _check_taps(taps)
        # JAX would compile the initializer for each of 94 shapes.
        initializer = "glorot_uniform" if weights is None else "zeros"
        convolutions = blocks.Convolutions(initializer)
        inputs = keras.Input((None, None, 3), dtype="uint8")
        outputs, classifier = _outputs(convolutions, inputs)
        kwargs.setdefault("name", "inception_v3")
        super().__init__(inputs, {tap: outputs[tap] for tap in taps}, **kwargs)
        self.taps = taps
        self.trainable = False
        if weights is not None:
            path = (
                fetch()
                if isinstance(weights, str) and weights == "fid"
                else find_file(weights)
            )
            load_weights(path, convolutions.made, classifier)

    def features(self, images: Any, batch_size: int = 64) -> dict[str, np.ndarray]:
        """The features of images, in batches of one size, so that one is compiled.

        Args:
            images: uint8 array in [0, 255], shape (num_images, H, W, 3).
            batch_size: Images in one pass, at least 1; rounded up to a multiple of the
                devices that share a batch under JAX.

        Returns:
            Dictionary from tap to float32 array (num_images, features).

        Raises:
            ValueError: If the images have another dtype, range or shape.
        """
        return self.in_batches(check_images(images), batch_size)

    def get_config(self) -> dict[str, Any]:
        """Without the weights, which Keras keeps itself."""
        return {"weights": None, "taps": list(self.taps), "name": self.name}

    @classmethod
    def from_config(
        cls, config: dict, custom_objects: dict | None = None
    ) -> "InceptionV3":
        """A network of the same taps."""
        return cls(**config)


def fetch() -> pathlib.Path:
    """Downloads the published weights, or finds them in Keras's cache.

    Returns:
        Path of the file.

    Raises:
        OSError: If they cannot be fetched, or are not what was published.
    """
    return fetch_url(
        URL,
        CHECKSUM,
        what="The file of InceptionV3's weights",
        usage="InceptionV3(weights={})",
        cache_subdir="models",
    )


def find_file(weights: Any) -> pathlib.Path:
    """The file at a path; warns if it is not the published one."""
    path = user_path(weights) if isinstance(weights, str | os.PathLike) else ""
    if not os.path.isfile(path):
        raise ValueError(
            f'`weights` must be "fid", None or the path of {FILENAME}. '
            f"Received: weights={weights!r}"
        )
    digest = sha256(path)
    if not digest.startswith(CHECKSUM):
        warnings.warn(
            f"{path} is not the published {FILENAME}: its SHA-256 begins "
            f"with {digest[:8]}. Distances will not compare with published ones.",
            stacklevel=3,
        )
    return path


def load_weights(
    path: str | os.PathLike[str],
    convolutions: dict[str, tuple],
    classifier: tuple[keras.layers.Layer, keras.layers.Layer],
) -> None:
    """Loads the PyTorch conversion; changes nothing if a tensor does not fit.

    Args:
        path: The file.
        convolutions: (convolution, normalization) by name.
        classifier: The layers that hold the last weight and its bias.

    Raises:
        ValueError: If the file cannot be read or is of another network. The message
            names the file and the first tensor that does not fit.
    """
    tensors = load_torch(path)
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, not weights.")
    found = []
    for name, variable, convert in _variables(convolutions, classifier):
        if not isinstance(tensors.get(name), np.ndarray):
            raise ValueError(f"{path} has no tensor {name}.")
        tensor = tensors[name]
        value = convert(tensor)
        if value.shape != tuple(variable.shape):
            raise ValueError(
                f"Tensor {name} of {path} has shape {tensor.shape}, which InceptionV3 "
                f"has as {tuple(variable.shape)}."
            )
        if not np.isfinite(value).all():
            raise ValueError(f"Tensor {name} of {path} is not finite.")
        found.append((variable, value))
    for variable, value in found:
        variable.assign(value)


def _variables(convolutions, classifier):
    """(name in the file, variable, how the array becomes its value)."""
    for name, (convolution, normalization) in convolutions.items():
        yield f"{name}.conv.weight", convolution.kernel, _to_channels_last
        yield f"{name}.bn.weight", normalization.gamma, np.asarray
        yield f"{name}.bn.bias", normalization.beta, np.asarray
        yield f"{name}.bn.running_mean", normalization.moving_mean, np.asarray
        yield f"{name}.bn.running_var", normalization.moving_variance, np.asarray
    yield "fc.weight", classifier[0].kernel, np.transpose
    yield "fc.bias", classifier[1].bias, np.asarray


def _to_channels_last(kernel):
    return np.moveaxis(kernel, (0, 1), (-1, -2)) if kernel.ndim == 4 else kernel


class Bias(keras.layers.Layer):
    """Adds a number to each channel."""

    def build(self, input_shape: tuple) -> None:
        self.bias = self.add_weight((input_shape[-1],), "zeros", name="bias")

    def call(self, inputs: Any) -> Any:
        return inputs + self.bias


def _outputs(conv, images):
    """All taps, and the two layers of the classifier."""
    mean = layers.GlobalAveragePooling2D(**blocks.IMAGES)
    x = blocks.Resize(dtype="float32")(images)
    first, x = blocks.stem(conv, x)
    taps = {"64": mean(first), "192": mean(x)}
    for name, filters in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = blocks.block_a(conv, x, name, filters)
    x = blocks.block_b(conv, x, "Mixed_6a")
    x, _ = blocks.block_c(conv, x, "Mixed_6b", 128)
    x, _ = blocks.block_c(conv, x, "Mixed_6c", 160)
    x, spatial = blocks.block_c(conv, x, "Mixed_6d", 160)
    x, _ = blocks.block_c(conv, x, "Mixed_6e", 192)
    taps["768"] = mean(x)
    taps["spatial"] = ops.reshape(spatial[..., :7], (-1, 17 * 17 * 7))
    x = blocks.last_blocks(conv, blocks.block_d(conv, x, "Mixed_7a"))
    taps["2048"] = mean(x)
    weight = layers.Dense(1008, use_bias=False, dtype="float32", name="fc")
    bias = Bias(dtype="float32", name="fc_bias")
    taps["logits_unbiased"] = weight(taps["2048"])
    taps["logits"] = bias(taps["logits_unbiased"])
    return taps, (weight, bias)


def _check_taps(taps):
    allowed = ", ".join(map(repr, TAPS))
    is_list = isinstance(taps, (list, tuple)) and len(taps) > 0
    if not is_list or not all(isinstance(t, str) and t in TAPS for t in taps):
        raise ValueError(
            f"`taps` must be one or more of {allowed}, in a list. "
            f"Received: taps={taps!r}"
        )
    return tuple(dict.fromkeys(taps))
