"""Published checkpoints of Inductive Moment Matching, as models."""

import mmap
import os
from typing import Any

import keras
import numpy as np

from keras_imm.backbones.dit import DiT
from keras_imm.backbones.unet import UNet
from keras_imm.checkpoints.hub import PUBLISHED, fetch
from keras_imm.checkpoints.persistent_modules import Module, map_file, read_checkpoint
from keras_imm.checkpoints.published_weights import assign_published_weights
from keras_imm.files.paths import user_path
from keras_imm.imm import IMM
from keras_imm.validation import check_integer, check_positive_number

# Published values, and ours.
_SCHEDULES = {"fm": "flow_matching", "vp_cosine": "cosine"}
_PARAMETERIZATIONS = {name: name for name in ("euler_fm", "simple_edm", "identity")}
_SECOND_TIMES = {"identity": "s", "stride": "stride"}
_LARGEST = 1e37  # a tenth of float32's range


def load_official(
    path_or_name: str | os.PathLike[str],
    *,
    dtype: Any = None,
    verbose: int = 0,
    **overrides: Any,
) -> IMM:
    """Reads a published checkpoint into a model that is ready for `generate`.

    The file is read as data: nothing in it is executed, nothing that it names is
    imported, and PyTorch is not needed. The network is rebuilt from the arguments
    that are stored in the file, and so are schedule, parameterization, second time
    input, time scale and time range.

    Args:
        path_or_name: Path of a file, or a published name: "cifar10",
            "imagenet256_ts_a2" or "imagenet256_s_a1", which is fetched from the
            Hugging Face Hub with `huggingface_hub` (`pip install keras_imm[hub]`).
        dtype: Dtype policy of the network, such as "mixed_bfloat16". Default: Keras's
            global policy.
        verbose: 1 shows a progress bar.
        **overrides: Arguments of `keras_imm.IMM` that win over those of the file, such
            as `second_time` or, for more training, `time_mapping` and `weighting`.

    Returns:
        An `IMM`, not compiled, with the published averaged weights as its weights.

    Raises:
        ValueError: If the file is not a published checkpoint, is damaged, holds values
            that are not finite or weights that do not fit; the message names the file
            and the first weight that does not fit.
        OSError: If a published name cannot be fetched; the message says what to
            download.

    Example:

    ```python
    model = keras_imm.checkpoints.load_official("imagenet256_ts_a2")
    latents = model.generate(labels=[207, 360], num_steps=8, guidance_scale=1.5)
    ```

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Table 5
    """
    if isinstance(path_or_name, str) and path_or_name in PUBLISHED:
        overrides = {**PUBLISHED[path_or_name].arguments(), **overrides}
        path = fetch(path_or_name)
    else:
        path = user_path(path_or_name)
    if not path.is_file():
        names = ", ".join(repr(name) for name in PUBLISHED)
        raise ValueError(
            f"`path_or_name` must be a file or one of {names}. "
            f"Received: path_or_name={str(path_or_name)!r}"
        )
    try:
        data = map_file(path)
        module, weights = read_checkpoint(data)
        arguments = _stored_arguments(module)
        model = build_model(arguments, weights, dtype=dtype, **overrides)
        _assign(model, weights, data, verbose)
    except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise ValueError(f"Cannot load {str(path)!r}: {error}") from error
    return model


def build_model(
    arguments: dict,
    weights: dict[str, np.ndarray],
    *,
    dtype: Any = None,
    **overrides: Any,
) -> IMM:
    """Makes a model from the arguments that a published one was made with.

    Args:
        arguments: Published constructor arguments of the model and its network.
        weights: Published weights by name. The network is made only if they are
            enough for it.
        dtype: Dtype policy of the network.
        **overrides: Arguments of `keras_imm.IMM` that win over the published ones.

    Returns:
        An `IMM` with new weights.

    Raises:
        ValueError: If an argument is unknown, missing or out of its range, or if the
            network would be larger than the weights.
    """
    if arguments.get("s_embed") is not True:
        raise ValueError("the network has no second time input")
    network = arguments.get("model_type")
    if network not in _NETWORKS:
        raise ValueError(
            f"the network {network!r:.50} is not one of {_listed(_NETWORKS)}"
        )
    settings = _settings(arguments, overrides)
    backbone = _NETWORKS[network](arguments, weights, dtype)
    return IMM(backbone, **settings)


def _stored_arguments(module: Module) -> dict:
    """Arguments of the model, then of its network, with the values in use on top."""
    network = module.children().get("model")
    if network is None:
        raise ValueError("there is no network in the file")
    return {
        **module.arguments,
        **network.arguments,
        **module.attributes,
        "model_type": network.class_name,
    }


def _settings(arguments: dict, overrides: dict) -> dict:
    """Arguments of IMM besides the backbone."""
    settings = {}
    for name, published, translation in (
        ("schedule", "noise_schedule", _SCHEDULES),
        ("parameterization", "f_type", _PARAMETERIZATIONS),
        ("second_time", "temb_type", _SECOND_TIMES),
        ("time_scale", "time_scale", None),
        ("sigma_data", "sigma_data", None),
        ("min_time", "eps", None),
        ("max_time", "T", None),
    ):
        if name in overrides:
            continue
        if published not in arguments:
            raise ValueError(f"the file does not say {published!r}: give `{name}`")
        value = arguments[published]
        if translation is not None:
            if not isinstance(value, str) or value not in translation:
                raise ValueError(
                    f"{published!r} must be one of {_listed(translation)}, "
                    f"found {value!r:.50}"
                )
            value = translation[value]
        settings[name] = value
    return {**settings, **overrides}


# -- Networks. The sizes in the file are believed only as far as its weights reach.


def _dit(arguments: dict, weights: dict, dtype: Any) -> DiT:
    side, channels = _image(arguments)
    patch = _size(arguments, "patch_size", 2)
    width = _size(arguments, "hidden_size", 1152)
    depth = _size(arguments, "depth", 28)
    heads = _size(arguments, "num_heads", 16)
    ratio = float(arguments.get("mlp_ratio", 4.0))
    num_classes = 0
    if "model.y_embedder.embedding_table.weight" in weights:
        num_classes = _size(arguments, "num_classes", 1000)
    check_positive_number("mlp_ratio", ratio)
    block = 10 * width**2 + 2 * width * int(width * ratio)
    table = side // patch * (side // patch) * width
    projection = 2 * width * patch**2 * channels
    least = depth * block + table + projection + num_classes * width
    _check_size(least, 10 * depth, weights)
    return DiT(
        image_shape=(side, side, channels),
        patch_size=patch,
        hidden_size=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=ratio,
        num_classes=num_classes,
        qk_norm=bool(arguments.get("qk_norm", False)),
        dropout=arguments.get("dropout", 0.0),
        dtype=dtype,
    )


def _unet(arguments: dict, weights: dict, dtype: Any) -> UNet:
    side, channels = _image(arguments)
    width = _size(arguments, "model_channels", 128)
    multiples = _sizes(arguments, "channel_mult", [1, 2, 2, 2])
    blocks = _size(arguments, "num_blocks", 4)
    noise = _size(arguments, "channel_mult_noise", 1) * width
    embedding = _size(arguments, "channel_mult_emb", 4) * width
    num_classes = _size(arguments, "label_dim", 0, at_least=0)
    augmentation_dim = _size(arguments, "augment_dim", 0, at_least=0)
    convolutions = sum(18 * blocks * (multiple * width) ** 2 for multiple in multiples)
    label_weights = (num_classes + augmentation_dim) * noise
    embeddings = 2 * embedding * (noise + embedding)
    image = 18 * channels * width
    least = convolutions + label_weights + embeddings + image
    _check_size(least, 20 * len(multiples) * blocks, weights)
    fourier = arguments.get("embedding_kwargs")
    fourier = fourier if isinstance(fourier, dict) else {}
    return UNet(
        image_shape=(side, side, channels),
        model_channels=width,
        channel_mult=multiples,
        num_blocks=blocks,
        attention_resolutions=_sizes(arguments, "attn_resolutions", [16]),
        embedding_type=arguments.get("embedding_type", "positional"),
        encoder_type=arguments.get("encoder_type", "standard"),
        decoder_type=arguments.get("decoder_type", "standard"),
        resample_filter=_sizes(arguments, "resample_filter", [1, 1]),
        channel_mult_noise=noise // width,
        channel_mult_embedding=embedding // width,
        fourier_scale=fourier.get("scale", 16.0),
        num_classes=num_classes,
        augmentation_dim=augmentation_dim,
        label_dropout=arguments.get("label_dropout", 0.0),
        dropout=arguments.get("dropout", 0.1),
        dtype=dtype,
    )


_NETWORKS = {"DiT": _dit, "SongUNet": _unet}


def _image(arguments: dict) -> tuple[int, int]:
    return _size(arguments, "img_resolution"), _size(arguments, "img_channels")


def _size(
    arguments: dict, name: str, default: int | None = None, at_least: int = 1
) -> int:
    value = arguments.get(name, default)
    check_integer(name, value, at_least=at_least)
    return value


def _sizes(arguments: dict, name: str, default: list[int]) -> list[int]:
    values = arguments.get(name, default)
    if not isinstance(values, (list, tuple)):
        raise ValueError(f"`{name}` must be a list of integers")
    for value in values:
        check_integer(name, value, at_least=1)
    return list(values)


def _check_size(least: int, arrays: int, weights: dict[str, np.ndarray]) -> None:
    """Raises ValueError if a network has more weights, or arrays, than the file."""
    if arrays > len(weights):
        raise ValueError(
            f"the network has at least {arrays:.3g} arrays, the file {len(weights)}"
        )
    held = sum(weight.size for weight in weights.values())
    if least > held:
        raise ValueError(
            f"the network has at least {least:.3g} weights, the file {held:.3g}"
        )


def _listed(names) -> str:
    return ", ".join(repr(name) for name in names)


def _assign(model: IMM, weights: dict, data: mmap.mmap, verbose: int) -> None:
    """Assigns all weights, or none; the file leaves memory as fast as it came."""
    for name, weight in weights.items():
        # Apart: in half precision the bound itself would be infinite.
        if not np.all(np.isfinite(weight)) or np.max(np.abs(weight)) > _LARGEST:
            raise ValueError(
                f"Weight {name!r} has values that are not finite, or beyond {_LARGEST}."
            )
        _forget(data)
    bar = keras.utils.Progbar(len(weights), verbose=verbose, unit_name="weight")

    def progress(count):
        _forget(data)
        bar.update(count)

    assign_published_weights(model.backbone, weights, progress)
    bar.update(len(weights), finalize=True)


def _forget(data: mmap.mmap) -> None:
    """Lets the system drop what it has read; it would count as this process's."""
    if hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED)
