"""A small exported model, and the server of it."""

import numpy as np
import pytest
from server_process import Server
from small_dit import small_dit

import keras_imm


@pytest.fixture(scope="session")
def tiny_model():
    model = keras_imm.IMM(small_dit(), seed=0)
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    return model


@pytest.fixture(scope="session")
def exported(tiny_model, tmp_path_factory):
    """A folder of versions, of which 10 is the newest."""
    from keras_imm.serving import export_saved_model

    folder = tmp_path_factory.mktemp("served") / "tiny"
    export_saved_model(
        tiny_model, folder, (1, 2), value_range=(-3, 3), warmup=False, version=10
    )
    (folder / "9").mkdir()
    (folder / "9" / "saved_model.pb").write_bytes(b"not one")
    return folder


@pytest.fixture(scope="session")
def reference(exported):
    """The signatures as TensorFlow runs them; `reference(name, seed=...)`."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(exported / "10"))

    def call(signature_name="serving_default", **inputs):
        signature = loaded.signatures[signature_name]
        specs = signature.structured_input_signature[1]
        outputs = signature(
            **{n: tf.constant(value, specs[n].dtype) for n, value in inputs.items()}
        )
        return {name: value.numpy() for name, value in outputs.items()}

    return call


@pytest.fixture(scope="session")
def server(exported, tmp_path_factory):
    """A server in whose process keras and keras_imm cannot be imported."""
    traps = tmp_path_factory.mktemp("traps")
    for name in ("keras", "keras_imm"):
        (traps / f"{name}.py").write_text("raise ImportError('imported')")
    server = Server(f"--saved_model={exported}", "--name=tiny", PYTHONPATH=str(traps))
    yield server
    server.stop()
