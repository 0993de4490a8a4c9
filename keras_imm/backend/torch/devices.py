"""What the first device of PyTorch is."""

import torch
from keras import ops


def device_kind() -> str:
    """The device's own name, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def device_memory() -> int | None:
    """Bytes of the first GPU, None without one."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory


def computes_on_cuda() -> bool:
    """Whether Keras puts tensors on a CUDA device."""
    return ops.zeros(()).device.type == "cuda"
