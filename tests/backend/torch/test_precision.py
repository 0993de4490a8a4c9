"""The settings of PyTorch that decide how float32 is multiplied."""

import keras
import pytest
import torch

from keras_imm.backend.torch import precision

pytestmark = [
    pytest.mark.skipif(
        keras.backend.backend() != "torch", reason="the settings are PyTorch's"
    ),
    pytest.mark.skipif(
        not precision._named_by_precision(),
        reason="PyTorch has `fp32_precision` from 2.9 on",
    ),
]


def values():
    return [setting.fp32_precision for setting in precision._settings()]


@pytest.fixture
def restored():
    """What a test sets is unset after it: the suite runs inside a scope."""
    torch.set_float32_matmul_precision("highest")
    before = values()
    yield
    torch.set_float32_matmul_precision("highest")
    for setting, value in zip(precision._settings(), before, strict=True):
        setting.fp32_precision = value


def set_tf32_for_all():
    torch.backends.fp32_precision = "tf32"
    for setting in precision._settings()[3:]:
        setting.fp32_precision = "none"


def set_by_the_older_names():
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def set_one_by_one():
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


@pytest.mark.parametrize(
    "choose", [set_tf32_for_all, set_by_the_older_names, set_one_by_one]
)
def test_every_setting_inside_and_after(restored, choose):
    choose()
    before = values()
    assert set(before) != {"ieee"}
    with precision.full_precision():
        assert set(values()) == {"ieee"}
    assert values() == before


def test_the_older_names_can_still_be_read_after_it(restored):
    set_by_the_older_names()
    with precision.full_precision():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_what_inherits_goes_on_inheriting(restored):
    set_tf32_for_all()
    with precision.full_precision():
        pass
    torch.backends.fp32_precision = "ieee"
    assert set(values()) == {"ieee"}


def test_versions_before_the_newer_names(restored):
    set_by_the_older_names()
    with pytest.raises(KeyError), precision._without_tf32():
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
