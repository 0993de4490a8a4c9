"""What the first device of PyTorch is."""

import torch


def device_kind() -> str:
    """The device's own name, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
