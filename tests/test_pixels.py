"""From samples to images of bytes."""

import numpy as np
import pytest
from contracts.serializable import SerializableContract

import keras_imm
from keras_imm import DecodedLatents, Pixels
from keras_imm.latents import StableDiffusionVAE


class TestPixels(SerializableContract):
    make = staticmethod(lambda: Pixels(scale=[2.0, 3.0], offset=7))


class TestDecodedLatents(SerializableContract):
    make = staticmethod(lambda: DecodedLatents("sd-vae-ft-mse", sigma_data=0.25))


def test_every_byte_comes_back_from_the_range_of_the_data():
    """Bytes as examples scale them for training: to mean 0, standard deviation 0.5."""
    rng = np.random.default_rng(0)
    images = rng.permutation(np.arange(256, dtype="uint8")).reshape(4, 8, 8, 1)
    scale, offset = images.std() / 0.5, images.mean()
    samples = ((images - offset) / scale).astype("float32")
    pixels = Pixels(scale, offset)(samples)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, images)


def test_values_are_rounded_and_clipped():
    samples = np.float32([-9.0, -0.6, 0.4, 1.6, 254.7, 255.6, 1e9])
    expected = [0, 0, 0, 2, 255, 255, 255]
    np.testing.assert_array_equal(Pixels(1.0, 0.0)(samples), expected)
    np.testing.assert_array_equal(Pixels()(np.float32([-1.0, 0.2, 1.0])), [0, 153, 255])


def test_each_channel_can_have_its_own():
    samples = np.ones((2, 4, 4, 3), "float32")
    pixels = Pixels(scale=[1, 2, 3], offset=(10, 20, 30))(samples)
    np.testing.assert_array_equal(pixels, np.broadcast_to([11, 22, 33], samples.shape))
    with pytest.raises(ValueError, match=r"3 channels.*`scale`.*\(2, 4, 4, 1\)"):
        Pixels(scale=[1, 2, 3])(samples[..., :1])


def test_samples_that_are_no_numbers_have_no_pixels():
    with pytest.raises(ValueError, match="`samples` must be finite"):
        Pixels()(np.float32([0.0, np.nan]))


@pytest.mark.parametrize("name", ["scale", "offset"])
@pytest.mark.parametrize("value", [None, "1", np.inf, [1.0, np.nan], [], [[1.0]], True])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be a finite number, or one"):
        Pixels(**{name: value})


def test_latents_are_decoded_by_the_named_autoencoder(monkeypatch):
    made = []

    class Decoder:
        def decode(self, latents):
            return np.full((len(latents), 16, 16, 3), 7, "uint8")

    def from_diffusers(path, **options):
        made.append((path, options))
        return Decoder()

    monkeypatch.setattr(StableDiffusionVAE, "from_diffusers", from_diffusers)
    pixels = DecodedLatents("sd-vae-ft-mse", sigma_data=0.25)
    assert not made  # nothing is fetched before it is needed
    for _ in range(2):
        assert pixels(np.zeros((2, 2, 2, 4))).shape == (2, 16, 16, 3)
    assert made == [("sd-vae-ft-mse", {"sigma_data": 0.25})]


def test_only_published_autoencoders_can_be_named():
    """A preset of anybody's must not name files."""
    with pytest.raises(
        ValueError, match="`autoencoder` must be one of 'sd-vae-ft-ema'"
    ):
        keras_imm.DecodedLatents("/etc/passwd")
