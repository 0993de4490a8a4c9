"""Writes what the library of before its redesign makes, into data/witness/<backend>.

    KERAS_BACKEND=jax python tests/data/make_witness.py

Run once under each backend at commit 92b4285, and never again: files that a later
commit wrote would bear witness to nothing. It stays to say how they came about, with
Keras 3.15.1, TensorFlow 2.21.0, JAX 0.10.2, PyTorch 2.13.0 and public API alone:
`IMM`, `backbones`, `time_mappings`, `weightings`, `kernels`, `augmentation`,
`optimizers`, `fit`, `evaluate`, `generate`, `flow_map`, `save`, `save_weights`,
`callbacks.TrainingCheckpoint`, `serving.export_saved_model`, `serving.export_onnx`.
What is asked of the models is in tests/witness.py.

- model.keras, model.weights.h5.gz: a trained conditional DiT, with optimizer and random
  state. A .keras file is a zip, here with compression, which Keras leaves out.
- unet.keras: a trained unconditional U-Net.
- model.npz, unet.npz: what they generate; "own/..." from random numbers, and the loss
  of `evaluate`.
- checkpoint/: the folder of the run that made model.keras, killed in its third epoch of
  four.
- run.npz: losses of that run uncut, its weights and averages at the end ("end/...") and
  the largest change in each since the checkpoint ("change/...").
- signatures.json, answers.npz: exports of model.keras, and what they answer.
"""

import contextlib
import gzip
import itertools
import json
import os
import pathlib
import sys
import tempfile
import zipfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import witness

from keras_imm.callbacks import TrainingCheckpoint
from keras_imm.serving import export_onnx, export_saved_model


def start(model: keras.Model) -> None:
    """Weights that are not zero, so that all of the network is seen."""
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))


def trained_unet() -> keras.Model:
    """After six steps."""
    model = witness.unconditional()
    start(model)
    x, _ = witness.data()
    model.fit(x, batch_size=16, epochs=2, shuffle=False, verbose=0)
    return model


def run(path: pathlib.Path, epochs: int, *callbacks: keras.callbacks.Callback) -> tuple:
    """The model and losses of a run; epochs that the folder holds are not run again."""
    model, data = witness.conditional(), witness.Stream()
    start(model)
    callbacks = [*callbacks, TrainingCheckpoint(path, data, keep=1)]
    history = model.fit(data, epochs=epochs, verbose=0, callbacks=callbacks)
    return model, np.array(history.history["loss"])


def write_model(folder: pathlib.Path, name: str, model: keras.Model) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary, f"{name}.keras")
        model.save(path)
        with (
            zipfile.ZipFile(path) as stored,
            zipfile.ZipFile(folder / path.name, "w", zipfile.ZIP_DEFLATED) as smaller,
        ):
            for file in stored.namelist():
                smaller.writestr(file, stored.read(file))
    own = {f"own/{key}": v for key, v in witness.drawn_answers(model).items()}
    answers = own | witness.answers_to_noise(model)
    check_all_differ(answers)
    np.savez_compressed(folder / f"{name}.npz", **answers)


def check_all_differ(answers: dict[str, np.ndarray]) -> None:
    """A setting that changes nothing would be witnessed by nothing."""
    for one, other in itertools.combinations(answers.values(), 2):
        assert one.shape != other.shape or np.abs(one - other).max() > 1e-3


def write_weights(folder: pathlib.Path, model: keras.Model) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = pathlib.Path(temporary, "model.weights.h5")
        model.save_weights(path)
        smaller = gzip.compress(path.read_bytes(), mtime=0)
    (folder / "model.weights.h5.gz").write_bytes(smaller)


def write_run(folder: pathlib.Path, losses: np.ndarray, model: keras.Model) -> None:
    end = witness.weights_and_averages(model)
    model, _ = run(folder / "checkpoint", witness.KILLED_IN_EPOCH)
    begin = witness.weights_and_averages(model)
    change = {f"change/{key}": np.abs(end[key] - begin[key]).max() for key in end}
    end = {f"end/{key}": value for key, value in end.items()}
    np.savez_compressed(folder / "run.npz", loss=losses, **end, **change)


def write_exports(folder: pathlib.Path, model: keras.Model) -> None:
    signatures, answers = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        found = {
            name: witness.served(
                export_saved_model(model, pathlib.Path(temporary, name), **arguments)
            )
            for name, arguments in witness.EXPORTS.items()
        }
        path = export_onnx(model, pathlib.Path(temporary, "m.onnx"), **witness.ONNX)
        found["onnx"] = witness.through_onnx(path)
    for name, (described, answered) in found.items():
        signatures[name] = described
        answers |= {f"{name}/{key}": value for key, value in answered.items()}
    text = json.dumps(signatures, indent=1, sort_keys=True)
    (folder / "signatures.json").write_text(text + "\n")
    np.savez_compressed(folder / "answers.npz", **answers)


def main() -> None:
    folder = witness.ROOT / keras.backend.backend()
    folder.mkdir(parents=True)  # not over what is there
    with contextlib.suppress(witness.Killed):
        run(folder / "checkpoint", witness.EPOCHS, witness.Kill())
    with tempfile.TemporaryDirectory() as temporary:
        model, losses = run(pathlib.Path(temporary), witness.EPOCHS)
    write_weights(folder, model)
    write_model(folder, "model", model)
    write_exports(folder, model)
    write_run(folder, losses, model)
    write_model(folder, "unet", trained_unet())


if __name__ == "__main__":
    main()
