"""The digits table: a feature network of digits, and the script from end to end."""

import keras
import numpy as np
import pytest
from scripts import run_script
from small_dit import small_dit

import keras_imm

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="its parts are tested on every backend in tests/examples/test_evaluate.py",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits_metrics")
    model = keras_imm.IMM(small_dit(image_shape=(8, 8, 1), num_classes=10))
    model.save(folder / "model.keras")
    result = run_script(
        "benchmarks/digits_metrics.py",
        f"--checkpoint={folder / 'model.keras'}",
        f"--out={folder / 'out'}",
        *("--epochs=12", "--steps=1,2", "--num_images=60"),
    )
    assert result.returncode == 0, result.stderr
    return folder / "out", result.stdout


def test_the_stand_in_knows_digits(run):
    _, output = run
    accuracy = float(output.split("classifies ")[1].split()[0])
    assert accuracy > 0.93


def test_its_features_have_deviations_of_about_one(run):
    out, _ = run
    network = keras.saving.load_model(out / "features.keras")
    digits = np.load(out / "digits.npz")["images"]
    images = keras_imm.callbacks.pixels_to_uint8(digits)
    features = network.predict(images, verbose=0)["features"]
    assert features.shape == (1797, 32)
    assert 0.5 < np.sqrt(features.var(axis=0).mean()) < 2


def test_the_table_has_a_row_for_each_number_of_steps(run):
    _, output = run
    lines = output[output.index("| steps | frechet") :].splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1", "| 2"]
    assert all(line.count("±") == 2 for line in lines[2:])
