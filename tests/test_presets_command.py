"""`python -m keras_imm.presets`: figures that are computed again."""

import json

import keras
import numpy as np
import pytest

import keras_imm
from keras_imm.metrics import DigitsQuality
from keras_imm.presets import __main__ as presets_command
from keras_imm.presets.__main__ import main, quality

pytestmark = [
    pytest.mark.any_backend("a command, of what is tested on each"),
    pytest.mark.slow("trains the classifier that sees labels in samples"),
]

SAMPLES, SEED = 80, 3


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    backbone = keras_imm.backbones.DiT(
        image_shape=(8, 8, 1), hidden_size=16, depth=1, num_heads=2, num_classes=10
    )
    model = keras_imm.IMM(backbone)
    rng = np.random.default_rng(0)
    for v in model.backbone.trainable_variables:
        v.assign(0.1 * rng.standard_normal(v.shape).astype("float32"))
    return model


def save(model, folder, rows, measure="digits_v1"):
    about = {"measure": measure, "samples": SAMPLES, "noise_seed": SEED}
    model.save_to_preset(folder, description=about | {"quality": rows})
    return str(folder)


@pytest.fixture(scope="module")
def measured(model, tmp_path_factory):
    """The preset's folder, and what is measured."""
    folder = tmp_path_factory.mktemp("presets") / "tiny"
    rows = quality(save(model, folder, [{"steps": 1}, {"steps": 2}]))
    return save(model, folder, rows), rows


def test_quality_is_that_of_samples_of_the_noise(measured):
    folder, rows = measured
    rng = np.random.default_rng(SEED)
    noise = rng.standard_normal((SAMPLES, 8, 8, 1), "float32")
    labels = np.arange(SAMPLES) % 10
    model = keras_imm.FlowMapModel.from_preset(folder)
    for row in rows:
        samples = model.generate(labels, num_steps=row["steps"], noise=noise)
        expected = DigitsQuality().measure(samples, labels)
        assert row["frechet"] == pytest.approx(expected["frechet"], rel=1e-3)
        assert row["agreement"] == pytest.approx(expected["agreement"], abs=0.02)
    assert rows[0] != rows[1]


def test_figures_are_printed_beside_the_card_s(measured, capsys):
    folder, rows = measured
    assert main(["measure", folder]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == ["1 step", "2 steps"]
    figure = f"{rows[1]['frechet']:.4f}"
    assert printed[1].count(figure) == 2


def test_rows_are_printed_as_they_are_measured(measured, capsys, monkeypatch):
    folder, rows = measured

    def stopped(*_):
        yield rows[0]
        raise OSError("no disk")

    monkeypatch.setattr(presets_command, "_rows", stopped)
    assert main(["measure", folder]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("frechet") == 1
    assert printed.err == "no disk\n"


def test_a_figure_that_is_off_is_an_error(model, measured, tmp_path, capsys):
    _, (row, _) = measured
    wrong = row | {"frechet": 0.9 * row["frechet"]}
    assert main(["measure", save(model, tmp_path / "wrong", [wrong])]) == 1
    assert "off by 11" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("measure", "rows"), [("mystery_v1", [{"steps": 1}]), ("digits_v1", [])]
)
def test_a_preset_that_was_not_measured_says_so(model, tmp_path, capsys, measure, rows):
    folder = save(model, tmp_path / "preset", rows, measure)
    assert main(["measure", folder]) == 1
    assert "does not say how it was measured" in capsys.readouterr().err
    assert main(["measure", "no_such_preset"]) == 1
    assert "no_such_preset" in capsys.readouterr().err


def rows_of(**changes):
    row = {"steps": 1, "frechet": 1.0} | changes
    return {"quality": [{k: v for k, v in row.items() if v is not None}]}


@pytest.mark.parametrize(
    ("changes", "entry"),
    [
        ([], "training"),
        (None, "training"),
        ({"measure": ["digits_v1"]}, "training.measure=['digits_v1']"),
        ({"samples": None}, "training.samples"),
        ({"samples": 0}, "training.samples"),
        ({"samples": 80.0}, "training.samples"),
        ({"samples": True}, "training.samples"),
        ({"noise_seed": -1}, "training.noise_seed"),
        ({"noise_seed": "a"}, "training.noise_seed"),
        ({"quality": {"steps": 1}}, "training.quality"),
        ({"quality": [1]}, "training.quality"),
        (rows_of(steps=None), "training.quality[0].steps"),
        (rows_of(steps=[1]), "training.quality[0].steps"),
        (rows_of(frechet=None), "training.quality[0]"),
        (rows_of(frechet="1.0"), "training.quality[0].frechet"),
        (rows_of(frechet=float("nan")), "training.quality[0].frechet"),
        (rows_of(agreement=0), "training.quality[0].agreement"),
    ],
)
def test_a_foreign_entry_is_named(tmp_path, capsys, changes, entry):
    about = {"measure": "digits_v1", "samples": SAMPLES, "noise_seed": SEED}
    about |= rows_of()
    training = about | changes if isinstance(changes, dict) else changes
    (tmp_path / "metadata.json").write_text(json.dumps({"training": training}))
    assert main(["measure", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(tmp_path) in said
    assert f"`{entry}`" in said or entry in said.partition("Received: ")[2]


def test_names_of_those_that_come_with_the_library(capsys):
    assert main(["list"]) == 0
    assert capsys.readouterr().out.split() == keras_imm.presets.names()
