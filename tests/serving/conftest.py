"""A trained model, its export, and what a process without Keras gets from that."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from served_models import GUIDANCE, WIDE, requests, trained_model

from keras_imm.serving import export_saved_model

PROCESS = pathlib.Path(__file__).with_name("only_tensorflow.py")


@pytest.fixture(scope="session")
def model():
    return trained_model()


@pytest.fixture(scope="session")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "digits"
    return export_saved_model(
        model,
        folder,
        num_steps=(1, 2),
        guidance_scale=GUIDANCE,
        value_range=WIDE,
        warmup=True,
    )


@pytest.fixture(scope="session")
def answers(exported, tmp_path_factory):
    """What a process without Keras gets from both loaders."""
    folder = tmp_path_factory.mktemp("answers")
    arrays = {
        f"{signature}/{name}": value
        for signature, inputs in requests().items()
        for name, value in inputs.items()
    }
    np.savez(folder / "inputs.npz", **arrays)
    files = [exported, folder / "inputs.npz", folder / "outputs.npz"]
    result = subprocess.run(
        [sys.executable, PROCESS, *files],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = dict(np.load(folder / "outputs.npz", allow_pickle=False))
    return found | json.loads(str(found.pop("json")))


@pytest.fixture
def served(model, tmp_path):
    def export(model=model, folder="served", **options):
        import tensorflow as tf

        options = {"num_steps": 1, "warmup": False} | options
        path = export_saved_model(model, tmp_path / folder, **options)
        return tf.saved_model.load(str(path)).signatures

    return export
