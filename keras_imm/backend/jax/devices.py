"""What the first device of JAX is."""

import jax


def device_kind() -> str:
    """The device's own name, such as "TPU v5 lite" or "cpu"."""
    return jax.local_devices()[0].device_kind


def device_memory() -> int | None:
    """Bytes that JAX may have of the first device, None where it does not say."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
