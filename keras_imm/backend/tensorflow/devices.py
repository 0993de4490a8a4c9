"""What the first device of TensorFlow is."""

import tensorflow as tf


def device_kind() -> str:
    """The device's own name, or "cpu"."""
    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return "cpu"
    return tf.config.experimental.get_device_details(devices[0]).get("device_name", "")


def device_memory() -> None:
    """TensorFlow does not say."""
    return None
