"""What the first device of PyTorch is."""

import torch
from keras import ops


def device_kind() -> str:
    """The device's own name, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def computes_on_cuda() -> bool:
    """Whether Keras puts tensors on a CUDA device."""
    return ops.zeros(()).device.type == "cuda"


def multiplies_in_tf32() -> bool:
    """Whether factors of float32 products are rounded to TensorFloat-32."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # from PyTorch 2.9 on
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32
