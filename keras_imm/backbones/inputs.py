"""The list of tensors that every backbone is called with."""

from typing import Any, NamedTuple

import keras


class Inputs(NamedTuple):
    """Inputs of a backbone by name; see `split_inputs`."""

    x: Any
    c_t: Any
    c_s: Any
    labels: Any
    augmentation_labels: Any


def split_inputs(
    inputs: list | tuple,
    image_shape: tuple[int, int, int],
    num_classes: int,
    augmentation_dim: int = 0,
) -> Inputs:
    """Names the inputs of a backbone, after checking them.

    Args:
        inputs: `[x, c_t, c_s, labels, augmentation_labels]`. What is left out at the
            end is None; labels are None where `num_classes` is 0. The fifth may be
            there only where `augmentation_dim` is above 0.
        image_shape: Shape that a sample must have.
        num_classes: Number of labels; 0 for none.
        augmentation_dim: Number of augmentation labels; 0 for none.

    Returns:
        An `Inputs`.

    Raises:
        ValueError: If there are too few or too many inputs, if one of them has another
            shape, or if labels are given or missing against `num_classes`.
    """
    most = 5 if augmentation_dim > 0 else 4
    if not 3 <= len(inputs) <= most:
        last = " or [x, c_t, c_s, labels, augmentation_labels]" if most == 5 else ""
        raise ValueError(
            f"`inputs` must be [x, c_t, c_s] or [x, c_t, c_s, labels]{last}. "
            f"Received a list of length {len(inputs)}."
        )
    x, c_t, c_s, labels, augmentation_labels = [*inputs, None, None][:5]
    if tuple(x.shape[1:]) != image_shape:
        raise ValueError(
            f"`x` must have shape (batch, *{image_shape}). "
            f"Received: x.shape={tuple(x.shape)}"
        )
    if num_classes == 0 and labels is not None:
        raise ValueError(
            "`labels` must be left out or None, because num_classes=0. "
            f"Received labels of shape {tuple(labels.shape)}."
        )
    if num_classes > 0 and labels is None:
        raise ValueError(
            "`labels` must be given, because num_classes="
            f"{num_classes}; the null label is {num_classes}. "
            "Received: labels=None"
        )
    for name, value in (("c_t", c_t), ("c_s", c_s), ("labels", labels)):
        if value is not None and len(value.shape) != 1:
            raise ValueError(
                f"`{name}` must have shape (batch,). "
                f"Received: {name}.shape={tuple(value.shape)}"
            )
    if augmentation_labels is not None and tuple(augmentation_labels.shape[1:]) != (
        augmentation_dim,
    ):
        raise ValueError(
            f"`augmentation_labels` must have shape (batch, {augmentation_dim}). "
            "Received: augmentation_labels.shape="
            f"{tuple(augmentation_labels.shape)}"
        )
    return Inputs(x, c_t, c_s, labels, augmentation_labels)


def symbolic_inputs(
    backbone: keras.layers.Layer, data_shape: tuple, batch: int | None = None
) -> list:
    """What a backbone is called with, as symbolic tensors.

    Args:
        backbone: Layer or model, called with labels or augmentation labels where it
            has an attribute `num_classes` or `augmentation_dim` above 0.
        data_shape: Shape of one sample.
        batch: Number of samples, or None.

    Returns:
        A list of `keras.KerasTensor`, with None for labels that are left out.
    """
    inputs = [keras.KerasTensor((batch, *data_shape), keras.backend.floatx())]
    inputs += [keras.KerasTensor((batch,), "float32")] * 2
    if getattr(backbone, "num_classes", 0):
        inputs.append(keras.KerasTensor((batch,), "int32"))
    if getattr(backbone, "augmentation_dim", 0):
        inputs += [None] * (4 - len(inputs))
        shape = (batch, backbone.augmentation_dim)
        inputs.append(keras.KerasTensor(shape, "float32"))
    return inputs


def inputs_of_one_sample(
    backbone: keras.layers.Layer, data_shape: tuple | None = None
) -> list:
    """Symbolic inputs of one sample, for a backbone that is then built.

    Args:
        backbone: The backbone; it is built if it is not.
        data_shape: Shape of x without the batch. Default: the backbone's attribute
            `image_shape`.

    Returns:
        List of `keras.KerasTensor`.

    Raises:
        ValueError: If the shape of the data is not known.
    """
    if data_shape is None:
        data_shape = getattr(backbone, "image_shape", None)
    if data_shape is None:
        raise ValueError(
            "`data_shape` must be given for a backbone without `image_shape`. "
            f"Received: data_shape=None, a {type(backbone).__name__}"
        )
    if not backbone.built:
        backbone(symbolic_inputs(backbone, data_shape))
    return symbolic_inputs(backbone, data_shape, batch=1)
