"""How PyTorch multiplies float32."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from keras_imm.backend.shared_setting import SharedSetting

_MATMUL, _CUDNN = torch.backends.cuda.matmul, torch.backends.cudnn


def _named_by_precision() -> bool:
    """Whether settings are called `fp32_precision`: from PyTorch 2.9 on."""
    return hasattr(_MATMUL, "fp32_precision")


def _settings() -> list[Any]:
    """What has an `fp32_precision`; each comes after the one that it inherits from."""
    cpu = torch.backends.mkldnn
    own = [_MATMUL, _CUDNN.conv, _CUDNN.rnn, cpu.matmul, cpu.conv, cpu.rnn]
    return [torch.backends, _CUDNN, cpu, *own]


@contextlib.contextmanager
def _ieee() -> Iterator[None]:
    """By the settings of PyTorch 2.9 and later.

    Where a setting inherits, it goes on inheriting afterwards. The older name of one of
    them is set beside it: PyTorch raises where somebody asks for that and the two
    contradict.
    """
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # they contradict already
        older = "highest"
    before = [(setting, setting.fp32_precision) for setting in _settings()]
    changed = []
    try:
        if older != "highest":
            torch.set_float32_matmul_precision("highest")
        for setting, value in before:
            if setting.fp32_precision != "ieee":
                changed.append((setting, value))
                setting.fp32_precision = "ieee"
        yield
    finally:
        if older != "highest":
            torch.set_float32_matmul_precision(older)
        for setting, value in reversed(changed):
            setting.fp32_precision = value
        for setting, value in before:
            if setting.fp32_precision != value:
                setting.fp32_precision = value


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """By the settings of PyTorch before 2.9."""
    before = torch.get_float32_matmul_precision(), _CUDNN.allow_tf32
    torch.set_float32_matmul_precision("highest")
    _CUDNN.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        _CUDNN.allow_tf32 = before[1]


full_precision = SharedSetting(_ieee if _named_by_precision() else _without_tf32)
"""Inside, float32 products and convolutions are computed in full float32.

Kernels ask when they run. The settings are those of the process.
"""


@contextlib.contextmanager
def older_name_agrees() -> Iterator[None]:
    """Lets `torch.backends.cudnn.allow_tf32` be read inside, as `torch.export` does.

    PyTorch raises where it contradicts the settings of its parts, as it does once one
    of those is set: full float32 is said by both inside.
    """
    if _older_name_agrees():
        yield
        return
    parts = [_CUDNN.conv, _CUDNN.rnn]
    before = [part.fp32_precision for part in parts]
    older = before[0] != before[1] or before[0] != "tf32"
    _CUDNN.allow_tf32 = False
    try:
        yield
    finally:
        _CUDNN.allow_tf32 = older
        for part, value in zip(parts, before, strict=True):
            part.fp32_precision = value


def _older_name_agrees() -> bool:
    try:
        return _CUDNN.allow_tf32 in (True, False)
    except RuntimeError:
        return False


def multiplies_in_tf32() -> bool:
    """Whether factors of float32 products are rounded to TensorFloat-32."""
    if _named_by_precision():
        return _MATMUL.fp32_precision == "tf32"
    return _MATMUL.allow_tf32
