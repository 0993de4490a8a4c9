"""Pictures of samples: where they are written and what they show."""

import numpy as np
import pytest
from PIL import Image

from keras_imm.callbacks import SampleImages, pixels_to_uint8


def test_the_picture_has_a_row_per_step_count_and_a_column_per_label(stub, tmp_path):
    pictures = SampleImages(
        tmp_path / "new" / "{epoch:03d}.png", labels=[0, 5], num_steps=(1, 2), freq=2
    )
    stub.run(pictures, epochs=4)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "002.png",
        "004.png",
    ]
    picture = np.asarray(Image.open(tmp_path / "new" / "002.png"))
    white, black = np.full((2, 3), 255), np.zeros((2, 3))
    # -1 and 5 / 10 - 1 in one step; both lie below the range in two.
    expected = [[black, white * 0 + 64], [black, black]]
    expected = np.block(
        [[np.pad(e, 1, constant_values=255) for e in row] for row in expected]
    )
    np.testing.assert_array_equal(picture, expected)


def test_names_in_the_logs_and_a_decoder_can_be_used(stub, tmp_path):
    def decode(latents):
        shape = (len(latents), 4, 4, 3)
        return np.full(shape, 200, np.uint8)

    pictures = SampleImages(
        tmp_path / "{loss:.0f}.png", decode, num_samples=3, num_steps=1
    )
    loss = stub.run(pictures).history["loss"][0]
    picture = np.asarray(Image.open(tmp_path / f"{loss:.0f}.png"))
    assert picture.shape == (6, 18, 3)
    assert (picture[1:5, 1:5] == 200).all()


def test_bytes_are_truncated_and_clipped():
    values = np.array([-2, -1, 0, 0.99, 1, 2], "float32")
    assert pixels_to_uint8(values).tolist() == [0, 0, 128, 254, 255, 255]


def test_a_decoder_that_returns_floats_is_named(stub, tmp_path):
    pictures = SampleImages(tmp_path / "a.png", np.abs, num_samples=1)
    with pytest.raises(ValueError, match=r"`to_uint8`.*float32.*\(1, 2, 3, 1\)"):
        stub.run(pictures)
