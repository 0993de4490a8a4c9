"""What cannot be exported is refused."""

import keras
import numpy as np
import pytest
from small_dit import small_dit

import keras_imm
from keras_imm.serving import export_onnx, export_saved_model
from keras_imm.serving.checks import value_range_of


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no model file at"):
        export_saved_model(tmp_path / "model.keras", tmp_path / "served")
    with pytest.raises(ValueError, match="`model` must"):
        export_saved_model(3, tmp_path / "served")
    with pytest.raises(ValueError, match="must be built"):
        export_onnx(keras_imm.IMM(keras.layers.Dense(1)), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


def test_data_must_have_one_shape(tmp_path):
    inputs = [keras.Input((None, 1)), keras.Input(()), keras.Input(())]
    model = keras_imm.IMM(keras.Model(inputs, keras.layers.Dense(1)(inputs[0])))
    with pytest.raises(ValueError, match=r"data of one shape.*\(None, 1\)"):
        export_onnx(model, tmp_path / "a.onnx")


def test_an_autoencoder_of_other_latents_is_refused(model, tmp_path):
    inputs = keras.Input((None, None, 4))
    vae = Autoencoder(keras.Model(inputs, keras.layers.Dense(3)(inputs)))
    with pytest.raises(ValueError, match=r"decodes 4 channels.*\(4, 4, 1\)"):
        export_saved_model(model, tmp_path / "served", latents=vae)
    assert not (tmp_path / "served").exists()


@pytest.mark.parametrize(("scale", "offset"), [(127.5, 127.5), (40.0, 90.0), (0.3, 7)])
def test_a_range_makes_the_bytes_of_pixels(scale, offset):
    model = keras_imm.IMM(small_dit())
    assert value_range_of(model) == (-1.0, 1.0)
    model.pixels = keras_imm.Pixels(scale, offset)
    low, high = value_range_of(model)
    samples = (np.linspace(-20.0, 275.0, 10_001) - offset) / scale
    found = np.clip((samples - low) * (255.0 / (high - low)) + 0.5, 0.0, 255.0)
    expected = model.to_uint8(samples).astype(int)
    near_ties = np.abs((scale * samples + offset) % 1 - 0.5) < 1e-6
    difference = np.abs(found.astype("uint8").astype(int) - expected)
    assert difference[~near_ties].max() == 0 and difference.max() <= 1


class Inverted:
    """Pixels of the user's own."""

    def __call__(self, samples):
        return np.uint8(255 - np.clip(samples, 0, 255))

    def get_config(self):
        return {}


@pytest.mark.parametrize(
    "pixels",
    [
        keras_imm.Pixels([40.0], 90.0),
        keras_imm.Pixels(40.0, [90.0]),
        keras_imm.Pixels(-40.0, 90.0),
        keras_imm.Pixels(0.0, 90.0),
        keras_imm.DecodedLatents(),
        Inverted(),
    ],
)
def test_pixels_that_no_range_says_ask_for_one(tmp_path, pixels):
    model = keras_imm.IMM(small_dit())
    model.pixels = pixels
    with pytest.raises(
        ValueError, match=rf"`value_range` is needed.*{type(pixels).__name__}"
    ):
        export_saved_model(model, tmp_path / "served")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"`signatures` must be.*'decode'"):
        export_saved_model(
            model, tmp_path / "served", value_range=(0, 1), signatures="decode"
        )


class Autoencoder(keras_imm.latents.StableDiffusionVAE):
    def __init__(self, decoder):
        self.decoder = decoder
