"""What the first device of TensorFlow is."""

import tensorflow as tf


def device_kind() -> str:
    """The device's own name, or "cpu"."""
    devices = tf.config.list_physical_devices("GPU")
    if not devices:
        return "cpu"
    return tf.config.experimental.get_device_details(devices[0]).get("device_name", "")


def multiplies_in_tf32() -> bool:
    """Whether factors of float32 products are rounded to TensorFloat-32."""
    return tf.config.experimental.tensor_float_32_execution_enabled()
