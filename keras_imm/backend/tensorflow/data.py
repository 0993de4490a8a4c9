"""Checks in TensorFlow's input pipeline, which no compiler of the step sees."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_imm.backend import checked_data

_ERROR = "keras_imm: "


class CheckedData(checked_data.CheckedData):
    """Data whose checks run in TensorFlow's input pipeline.

    `check.check_labels` is called with the labels alone of all batches but the first.
    """

    def get_tf_dataset(self) -> Any:
        return _checked_dataset(self.adapter.get_tf_dataset(), self.check)


def _checked_dataset(dataset: Any, check: Callable) -> Any:
    """The batches of a data set, each checked on the host when it is asked for.

    Those of a `tf.distribute.DistributedDataset` no host has as a whole.
    """
    if not isinstance(dataset, tf.data.Dataset):
        return dataset
    structure = dataset.element_spec
    specs = keras.tree.flatten(structure)
    # What stands for None in a batch has no value.
    have_values = [isinstance(spec, tf.TensorSpec) for spec in specs]
    pairs = zip(specs, have_values, strict=True)
    leaves = [spec if has_value else None for spec, has_value in pairs]
    check.check_structure(keras.tree.pack_sequence_as(structure, leaves))

    def check_first(*values):
        values = iter(values)
        leaves = [next(values).numpy() if has else None for has in have_values]
        _named(check, keras.tree.pack_sequence_as(structure, leaves))

    def check_labels(labels):
        _named(check.check_labels, labels.numpy())

    def checked(index, batch):
        leaves = list(zip(keras.tree.flatten(batch), have_values, strict=True))
        values = [leaf for leaf, has_value in leaves if has_value]
        has_labels = (
            isinstance(batch, tuple)
            and len(leaves) == len(batch) > 1
            and have_values[1]
        )

        def first():
            tf.py_function(check_first, values, [])
            return tf.constant(True)

        def later():
            if has_labels:
                tf.py_function(check_labels, [batch[1]], [])
            return tf.constant(True)

        with tf.control_dependencies([tf.cond(index == 0, first, later)]):
            same = [tf.identity(leaf) if has else leaf for leaf, has in leaves]
        return keras.tree.pack_sequence_as(batch, same)

    return dataset.enumerate().map(checked)


def _named(check: Callable, value: Any) -> None:
    """Marks the message of a ValueError, which TensorFlow wraps in a traceback."""
    try:
        check(value)
    except ValueError as error:
        raise ValueError(f"{_ERROR}{error}\n") from None


def value_error(error: Exception) -> ValueError | None:
    """The error that a check raised, where TensorFlow's is about one."""
    _, found, rest = str(error).partition(_ERROR)
    return ValueError(rest.partition("\n")[0]) if found else None
