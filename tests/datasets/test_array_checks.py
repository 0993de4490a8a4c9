"""Arrays that are nearly images."""

import warnings

import numpy as np
import pytest
from image_files import write_idx

from keras_imm.datasets import load

pytestmark = pytest.mark.one_backend("NumPy code")


def of_shape(*shape, dtype="uint8"):
    values = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    return values if dtype == "uint8" else (values / 127.5 - 1).astype(dtype)


BYTES = of_shape(6, 4, 4)


@pytest.mark.parametrize(
    ("shape", "dtype", "axes"),
    [
        ((6, 3, 8, 10), "uint8", (0, 2, 3, 1)),
        ((6, 1, 8, 10), "uint8", (0, 2, 3, 1)),
        ((6, 3, 8, 8), "float32", (0, 2, 3, 1)),
        ((6, 4, 8, 8), "float16", (0, 2, 3, 1)),
        ((8, 10, 3, 6), "uint8", (3, 0, 1, 2)),
        ((8, 8, 1, 6), "float32", (3, 0, 1, 2)),
    ],
)
def test_channels_are_last(tmp_path, shape, dtype, axes):
    images = of_shape(*shape, dtype=dtype)
    np.save(tmp_path / "a.npy", images)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(shape[0]))
    sources = [
        images,
        np.asfortranarray(images),
        tmp_path / "a.npy",
        tmp_path / "a.npz",
    ]
    if dtype == "uint8":
        write_idx(tmp_path / "a.idx4-ubyte", images)
        sources.append(tmp_path / "a.idx4-ubyte")
    for source in sources:
        with pytest.raises(ValueError, match="channels last") as error:
            load(source, 2)
        assert str(shape) in str(error.value)
        assert f"give `images.transpose{axes}`" in str(error.value)
    assert load(images.transpose(axes), 2).image_shape[-1] in (1, 3, 4)


@pytest.mark.parametrize("shape", [(8, 10, 3), (8, 10, 1)])
def test_one_image_is_no_data_set(shape):
    image = of_shape(*shape)
    with pytest.raises(ValueError, match=r"as one image has it; `images\[None\]`"):
        load(image, 1)
    assert load(image[None], 1).image_shape == shape


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((6, 3, 3, 3), "uint8"),
        ((6, 3, 8, 4), "uint8"),
        ((6, 1, 8, 2), "float32"),
        ((6, 1, 16, 8), "float32"),
        ((6, 1, 1, 64), "float32"),
        ((6, 8, 10, 12), "uint8"),
        ((3, 8, 10), "uint8"),
        ((6, 5, 4), "uint8"),
        ((6, 10, 3), "float32"),
    ],
)
def test_what_can_be_meant_so_is_taken(shape, dtype):
    dataset = load(of_shape(*shape, dtype=dtype), 2)
    assert dataset.image_shape == (*shape[1:], 1)[:3]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BYTES > 99, r"dtype bool .*; give `255 \* images.astype\('uint8'\)`"),
        (BYTES.astype("int64"), r"int64 .*; give `images.astype\('uint8'\)`"),
        (BYTES.astype("uint16"), r"uint16 .*; give `images.astype\('uint8'\)`"),
        (256 * BYTES.astype("uint16"), r"give `\(images // 256\).astype\('uint8'\)`"),
        (BYTES.astype("int16") - 128, "values from -12. to 12.; scale them"),
        (np.array([BYTES[0], of_shape(5, 4)], object), "stack images of one size"),
        (BYTES.astype("complex64"), "dtype complex64 and shape"),
        (of_shape(6, 0, 4), "There is no image in images"),
        (of_shape(6, 16), r"shape \(6, 16\); give .*reshape\(-1, H, W, C\)"),
    ],
)
def test_other_dtypes_say_what_to_do(images, message):
    with pytest.raises(ValueError, match=message):
        load(images, 2)


@pytest.mark.parametrize("label", [-1, 2**31, 2**32])
def test_labels_fit_into_32_bits(label):
    labels = np.array([0, label], "int64")
    with pytest.raises(ValueError, match=rf"in \[0, 2\*\*31\).*a label {label}"):
        load((of_shape(2, 4, 4), labels), 2)


def scaled(low, high, dtype="float32"):
    unit = np.random.default_rng(0).uniform(size=(100, 4, 4, 1))
    unit[0, 0, 0], unit[-1, 0, 0] = 0, 1  # the first and last record are looked at
    return (low + (high - low) * unit).astype(dtype)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (scaled(0, 1), r"from 0 to 1, .*: give `images / 0.5 - 1`"),
        (scaled(0, 16), r"from 0 to 16, .*: give `images / 8 - 1`"),
        (scaled(0, 16, "float64"), "from 0 to 16"),
        (scaled(-16, 16), "of standard deviation 9"),
        (scaled(0, 1) / 127.5 - 1, r"of standard deviation 0.00"),
        (scaled(0, 16, "uint8"), r"0 to 16, and taken for \[0, 255\].* -1.00 to -0.87"),
        (scaled(0, 1, "uint8"), r"from 0 to 1, and taken for \[0, 255\]"),
    ],
)
def test_other_ranges_are_said(tmp_path, images, message):
    np.save(tmp_path / "a.npy", images)
    for source in (images, tmp_path / "a.npy"):
        with pytest.warns(UserWarning, match=message) as caught:
            load(source, 2)
        assert [w.filename for w in caught] == [__file__]


def test_floats_of_255_are_found_before_they_are_read():
    images = np.zeros((100, 4, 4, 1), "float32")
    images[-1] = 255
    with pytest.raises(ValueError, match=r"images\[99\] with 255 in absolute value"):
        load(images, 2, shuffle=False)


@pytest.mark.parametrize(
    "images",
    [
        scaled(-1, 1),
        scaled(-1, 1, "float16"),
        scaled(-0.5, 0.5),
        scaled(0, 255, "uint8"),
        np.random.default_rng(0).standard_normal((100, 2, 2, 4)),
        np.zeros((4, 4, 4)),
        np.full((4, 4, 4), np.nan, "float32"),
    ],
)
def test_ranges_of_models_are_silent(images):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if np.isfinite(images).all():
            load(images, 2)
        else:
            with pytest.raises(ValueError, match="not finite"):
                load(images, 2)


def test_two_splits_are_not_images_and_labels():
    split = (BYTES, np.zeros(len(BYTES), "int32"))
    with pytest.raises(ValueError, match=r"one split.*Received: tuple of tuples"):
        load((split, split), 2)
