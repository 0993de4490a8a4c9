"""What cannot be exported is refused."""

import keras
import pytest

import keras_imm
from keras_imm.serving import export_onnx, export_saved_model


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


class Autoencoder(keras_imm.latents.StableDiffusionVAE):
    def __init__(self, decoder):
        self.decoder = decoder
