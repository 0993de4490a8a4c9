import numpy as np
import pytest
import torch
from keras import ops

from keras_imm.layers.resampling import (
    check_resample_filter,
    decimate,
    downsample,
    upsample,
)

FILTERS = [(1, 1), (1, 3, 3, 1), (0.5, 2, 4, 4, 2, 0.5)]
# Numbers that float32 sums exactly would hide a filter of another scale or order.
IMAGES = np.random.default_rng(0).standard_normal((2, 6, 10, 3)).astype("float32")


def torch_filter(taps, total):
    """The outer product with itself, once per channel, in torch's layout."""
    taps = torch.tensor(taps, dtype=torch.float64)
    square = total * torch.outer(taps, taps) / taps.sum() ** 2
    return square.expand(3, 1, -1, -1)


def resampled_by_torch(function, taps, total, padding):
    images = torch.tensor(IMAGES, dtype=torch.float64).permute(0, 3, 1, 2)
    result = function(
        images, torch_filter(taps, total), stride=2, padding=padding, groups=3
    )
    return result.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("taps", FILTERS, ids=len)
def test_downsample_is_a_strided_convolution(taps):
    result = ops.convert_to_numpy(downsample(ops.convert_to_tensor(IMAGES), taps))
    assert result.shape == (2, 3, 5, 3)
    conv2d = torch.nn.functional.conv2d
    expected = resampled_by_torch(conv2d, taps, 1, padding=(len(taps) - 1) // 2)
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("taps", FILTERS, ids=len)
def test_decimate_has_no_border(taps):
    result = ops.convert_to_numpy(decimate(ops.convert_to_tensor(IMAGES), taps))
    expected = resampled_by_torch(torch.nn.functional.conv2d, taps, 1, padding=0)
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, atol=1e-6)


@pytest.mark.parametrize("taps", FILTERS, ids=len)
def test_upsample_is_a_transposed_convolution(taps):
    result = ops.convert_to_numpy(upsample(ops.convert_to_tensor(IMAGES), taps))
    assert result.shape == (2, 12, 20, 3)
    conv_transpose2d = torch.nn.functional.conv_transpose2d
    padding = (len(taps) - 1) // 2
    expected = resampled_by_torch(conv_transpose2d, taps, 4, padding)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_the_shortest_filter_takes_means_and_repeats():
    images = ops.convert_to_tensor(IMAGES)
    means = IMAGES.reshape(2, 3, 2, 5, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(
        ops.convert_to_numpy(downsample(images)), means, atol=1e-6
    )
    repeated = IMAGES.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(ops.convert_to_numpy(upsample(images)), repeated)


@pytest.mark.parametrize("resample", [downsample, upsample])
def test_keeps_half_precision(resample):
    images = ops.cast(IMAGES, "bfloat16")
    assert resample(images, (1, 3, 3, 1)).dtype == images.dtype


@pytest.mark.parametrize(
    "value",
    [
        (),
        (1,),
        (1, 2, 1),
        (1, 2),
        (1, -3, -3, 1),
        (0, 0),
        (True, True),
        (float("nan"),) * 2,
        (float("inf"),) * 2,
        ("1", "1"),
        "11",
        None,
        1,
    ],
    ids=repr,
)
def test_wrong_filters(value):
    with pytest.raises(ValueError, match=r"`taps` must be a symm.*\[1, 1\].*taps="):
        check_resample_filter("taps", value)


def test_filters_may_be_lists_and_numbers_of_numpy():
    check_resample_filter("taps", [np.float32(1.5), np.int64(2), 2, 1.5])
