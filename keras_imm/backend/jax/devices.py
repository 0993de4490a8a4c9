"""What the first device of JAX is."""

import jax


def device_kind() -> str:
    """The device's own name, such as "TPU v5 lite" or "cpu"."""
    return jax.local_devices()[0].device_kind


def multiplies_in_tf32() -> bool:
    """Whether factors of float32 products are rounded to TensorFloat-32."""
    precision = jax.config.jax_default_matmul_precision
    return precision in (None, "default", "fastest", "tensorfloat32")
