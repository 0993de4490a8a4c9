"""Any image becomes the pixels that the papers train on."""

import io

import numpy as np
import pytest
from image_files import encoded, pixels
from PIL import Image

from keras_imm.datasets.decoding import CorruptRecordError, center_crop, decode

pytestmark = pytest.mark.one_backend("NumPy code")


def bicubic(size, new_size):
    """Matrix of Keys's bicubic interpolation with antialiasing, in float64."""
    scale = size / new_size
    width = max(scale, 1.0)
    centers = (np.arange(new_size) + 0.5) * scale
    x = np.abs(np.arange(size) + 0.5 - centers[:, None]) / width
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, inner, np.where(x < 2, outer, 0.0))
    return weights / weights.sum(axis=1, keepdims=True)


def adm_crop(image, size):
    """The crop in float64, without rounding in between; sides must stay even."""
    image = image.astype("float64")
    while min(image.shape[:2]) >= 2 * size:
        height, width, channels = image.shape
        image = image.reshape(height // 2, 2, width // 2, 2, channels).mean((1, 3))
    height, width, _ = image.shape
    new = [round(side * size / min(height, width)) for side in (height, width)]
    image = np.einsum("ij,jkc->ikc", bicubic(height, new[0]), image)
    image = np.einsum("ij,kjc->kic", bicubic(width, new[1]), image)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return np.clip(image[top : top + size, left : left + size], 0, 255)


@pytest.mark.parametrize(
    ("height", "width"), [(64, 96), (48, 40), (20, 30), (12, 9), (16, 16), (17, 16)]
)
def test_the_crop_is_the_one_of_the_papers(height, width):
    image = 80 + pixels(0, height, width) // 4  # noise that nothing has to clip
    cropped = np.asarray(center_crop(Image.fromarray(image), 16))
    difference = np.abs(cropped - adm_crop(image, 16))
    # Pillow rounds after each of up to four steps.
    assert difference.max() < 2
    assert difference.mean() < 1


def test_an_image_of_the_size_stays_as_it_is():
    image = Image.fromarray(pixels(1, 16, 20))
    cropped = center_crop(image, 16)
    np.testing.assert_array_equal(cropped, pixels(1, 16, 20)[:, 2:18])


@pytest.mark.filterwarnings("error")
def test_every_kind_of_image_becomes_rgb():
    grey = pixels(2, channels=1)
    colour = pixels(3)
    alpha = np.concatenate([colour, pixels(4, channels=1)[..., None]], axis=-1)
    palette = Image.fromarray(colour).quantize(16)
    on_grey = np.repeat(grey[..., None], 3, axis=-1)
    wide = grey.astype("uint16") * 256 + 200
    cmyk = Image.fromarray(colour).convert("CMYK")
    expected = {
        encoded(grey): on_grey,
        encoded(alpha): colour,
        encoded(np.stack([grey, grey], -1)): on_grey,
        encoded(palette): np.asarray(palette.convert("RGB")),
        encoded(palette, transparency=bytes(range(16))): np.asarray(
            palette.convert("RGB")
        ),
        encoded(wide): on_grey,
        encoded(cmyk, "tiff"): np.asarray(cmyk.convert("RGB")),
        encoded(Image.fromarray(grey > 99)): 255 * (on_grey > 99),
        encoded(colour, "webp", lossless=True): colour,
    }
    for data, rgb in expected.items():
        np.testing.assert_array_equal(decode(data), rgb)


def test_a_jpeg_is_what_pillow_reads():
    data = encoded(pixels(5, 40, 40), "jpeg")
    np.testing.assert_array_equal(decode(data), Image.open(io.BytesIO(data)))


def test_colour_becomes_grey_where_asked():
    grey = np.asarray(decode(encoded(pixels(6)), channels=1), "float64")
    expected = pixels(6) @ [0.299, 0.587, 0.114]
    assert np.abs(grey - expected).max() <= 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no image",
        encoded(pixels(7, 40, 40), "jpeg")[:-300],
        encoded(pixels(7, 40, 40))[:-300],
        encoded(Image.fromarray(np.zeros((4, 4), "float32")), "tiff"),
        encoded(Image.fromarray(np.full((4, 4), 70000, "int32")), "tiff"),
        encoded(Image.fromarray(np.full((4, 4), -1, "int32")), "tiff"),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "floats", "32 bits", "negative"],
)
def test_what_is_no_whole_image_is_corrupt(data):
    with pytest.raises(CorruptRecordError):
        decode(data)
