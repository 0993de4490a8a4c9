"""A full disk and a read-only folder at every file that the library writes.

    KERAS_BACKEND=torch python benchmarks/write_faults.py

Each writer writes once undisturbed. Then it writes beside what is there already, with
room for a part of its largest file alone (none, half, all but one byte; by the limit
of a process on the size of files), and into a folder that it may not write to. It has
to raise OSError, or write nothing because all is there, and to leave what was there
before as it was, and no file in part; --writer chooses some.
"""

import contextlib
import hashlib
import os
import pathlib
import resource
import signal
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import keras_imm
from keras_imm import callbacks, metrics, serving
from keras_imm.files import atomic
from keras_imm.latents import shard_files

FLAGS = flags.FLAGS
flags.DEFINE_multi_string("writer", [], "A writer. Default: all.")

NOBODY = 65534
SHARES = (0.0, 0.5, 1.0)  # of the largest file, less one byte


def make_model():
    keras.utils.set_random_seed(0)
    backbone = keras_imm.backbones.DiT(
        image_shape=(8, 8, 1),
        patch_size=2,
        hidden_size=32,
        depth=2,
        num_heads=2,
        num_classes=3,
    )
    model = keras_imm.IMM(backbone, seed=0)
    model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    return model


def data(rows=16):
    rng = np.random.default_rng(0)
    images = 0.5 * rng.standard_normal((rows, 8, 8, 1)).astype("float32")
    return images, np.arange(rows) % 3


def fit(model, *given):
    images, labels = data()
    model.fit(images, labels, batch_size=8, epochs=1, verbose=0, callbacks=list(given))


def with_checkpoint(model, folder):
    stream = keras_imm.datasets.load(data(), batch_size=8)
    checkpoint = callbacks.TrainingCheckpoint(folder / "checkpoints", stream)
    model.fit(stream, epochs=1, verbose=0, callbacks=[checkpoint])


def with_best(model, folder):
    monitor = callbacks.QualityMonitor(
        held_out=data()[0],
        metric=lambda held_out, samples: abs(np.var(held_out) - np.var(samples)),
        name="variance",
        num_samples=4,
        save_best=folder / "best.keras",
    )
    fit(model, monitor)


def with_averages(model, folder):
    """Into a folder that is empty, as the callback asks for."""
    number = len(list(folder.iterdir()))
    fit(model, callbacks.PowerAverages(folder / f"averages-{number}"))


def statistics(folder):
    features = np.random.default_rng(0).standard_normal((50, 64))
    mean, covariance = features.mean(axis=0), np.cov(features, rowvar=False)
    reference = metrics.ReferenceStatistics(mean, covariance, features=features)
    reference.save(folder / "features.npz")


def shards(folder):
    place = folder / "latents"
    dtype = shard_files.record_dtype((4, 4, 8), "float16", mirrored=False)
    shard_files.claim_folder(place, {"autoencoder": "none"})
    shard_files.write_shard(place, 0, np.zeros(5, dtype))
    description = {"moments_shape": [4, 4, 8], "dtype": "float16", "mirrored": False}
    shard_files.write_manifest(place, 1, description)


def non_finite(model, folder):
    """The particles of a step whose loss is not finite."""
    stream = keras_imm.datasets.load(data(), batch_size=8)
    for variable in model.backbone.trainable_variables:
        variable.assign(variable * np.nan)
    stop = callbacks.TerminateOnNonFinite(folder / "particles", stream)
    with contextlib.suppress(FloatingPointError):
        model.fit(stream, epochs=1, verbose=0, callbacks=[stop])


# What is written: called with a model and a folder.
WRITERS = {
    "save": lambda model, folder: model.save(folder / "model.keras"),
    "save_weights": lambda model, folder: model.save_weights(folder / "a.weights.h5"),
    "save_to_preset": lambda model, folder: model.save_to_preset(folder / "preset"),
    "TrainingCheckpoint": with_checkpoint,
    "QualityMonitor": with_best,
    "PowerAverages": with_averages,
    "SampleGrid": lambda model, folder: fit(
        model, callbacks.SampleGrid(folder / "{epoch}.png", labels=[0, 1])
    ),
    "ReferenceStatistics": lambda model, folder: statistics(folder),
    "latent shards": lambda model, folder: shards(folder),
    "TerminateOnNonFinite": non_finite,
    "write_json": lambda model, folder: atomic.write_json(
        folder / "metrics.json", list(range(100))
    ),
    "export_saved_model": lambda model, folder: serving.export_saved_model(
        model, folder / "served", num_steps=2
    ),
    "export_onnx": lambda model, folder: serving.export_onnx(
        model, folder / "model.onnx", num_steps=2
    ),
}


def contents(folder):
    """Digests of all files below a folder, by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextlib.contextmanager
def room_for(size):
    """Files of at most so many bytes, here and in child processes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def read_only(folder):
    """A folder, and those in it, that this process may not write to."""
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    modes = [path.stat().st_mode for path in folders]
    for path in folders:
        path.chmod(0o555)
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path, mode in zip(folders, modes, strict=True):
            path.chmod(mode)


def case(write, folder, fault, whole):
    """What is wrong after a fault, or None.

    `whole` are the contents of a folder of which nothing failed.
    """
    before = contents(folder)
    try:
        with fault:
            write(make_model(), folder)
        error = None
    except OSError as raised:
        error = raised
    except Exception as raised:  # reported, whatever it is
        return f"{type(raised).__name__}: {raised}"
    after = contents(folder)
    if error is None and not before:
        return "no error"
    # Of a folder of several files, those that are as a whole run leaves them may stay.
    different = {k for k in after.keys() | before if after.get(k) != before.get(k)}
    if not before:
        different = {k for k in different if after[k] != whole.get(k)}
    return f"left {sorted(different)}" if different else None


def check(name, root):
    """How many cases of a writer there were, and what was wrong with some."""
    write = WRITERS[name]
    whole = root / "whole"
    whole.mkdir(mode=0o755)
    write(make_model(), whole)
    size = max(path.stat().st_size for path in whole.rglob("*") if path.is_file())
    faults = {f"room for {share:.0%}": share for share in SHARES}
    wrong, count = [], 0
    for beside in (False, True):
        for title in (*faults, "read-only"):
            folder = root / f"{title} {beside}".replace(" ", "_")
            folder.mkdir(mode=0o755)
            if beside:
                write(make_model(), folder)
            if title == "read-only":
                fault = read_only(folder)
            else:
                fault = room_for(max(0, int(faults[title] * size) - 1))
            found = case(write, folder, fault, contents(whole))
            count += 1
            if found:
                wrong.append(f"{title}{', beside' if beside else ''}: {found}")
    return size, count, wrong


def main(_):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the error EFBIG instead
    print("| writer | largest file, bytes | cases | wrong |\n|---|---|---|---|")
    failed = False
    for name in FLAGS.writer or WRITERS:
        with tempfile.TemporaryDirectory() as root:
            pathlib.Path(root).chmod(0o755)
            size, count, wrong = check(name, pathlib.Path(root))
        failed |= bool(wrong)
        print(f"| {name} | {size} | {count} | {'; '.join(wrong)} |", flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    app.run(main)
