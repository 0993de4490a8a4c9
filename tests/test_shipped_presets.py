"""The trained models that come with the library, and what is said of them."""

import re

import numpy as np
import pytest
from scripts import ROOT

import keras_imm
from keras_imm.files.presets import BUILT_IN

NAMES = ("imm_digits", "imm_fashion_mnist")


def test_these_two_come_with_the_library():
    assert sorted(keras_imm.presets.names()) == sorted(NAMES)


@pytest.mark.one_backend("reads files")
def test_they_take_at_most_six_megabytes():
    sizes = [path.stat().st_size for path in BUILT_IN.rglob("*") if path.is_file()]
    assert sum(sizes) <= 6_000_000


@pytest.mark.one_backend("reads files")
@pytest.mark.parametrize("name", NAMES)
def test_the_card_says_where_they_come_from(name):
    about = keras_imm.presets.metadata(name)["training"]
    text = (BUILT_IN / name / "README.md").read_text()
    for entry in ("data", "licence", "command", "backend"):
        assert about[entry] in text, entry
    assert f"seed {about['seed']}" in text
    assert "/" not in about["command"].split("--out=")[0].replace("examples/", "")
    for row in about["quality"]:
        assert f"| {row['steps']} |" in text
        assert f"{row['frechet']:.4f}" in text and f"{row['agreement']:.4f}" in text


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_seen_in_their_samples(name):
    """As often as the card says, by what measures them; 500 samples, two steps."""
    model = keras_imm.FlowMapModel.from_preset(name)
    labels = np.arange(500) % 10
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((500, *model.data_shape), "float32")
    samples = model.generate(labels, noise=noise, batch_size=500, verbose=0)
    if name == "imm_digits":
        agreement = keras_imm.metrics.DigitsQuality().agreement(samples, labels)
    else:
        classifier = keras_imm.metrics.FashionMNISTClassifier()
        logits = classifier.outputs_of(model.to_uint8(samples))["logits"]
        agreement = np.mean(np.argmax(logits, axis=-1) == labels)
    rows = keras_imm.presets.metadata(name)["training"]["quality"]
    (expected,) = (row["agreement"] for row in rows if row["steps"] == 2)
    assert agreement == pytest.approx(expected, abs=0.05)
    assert len(model.class_names) == 10


@pytest.mark.one_backend("reads a page")
def test_the_guide_has_the_figures_of_the_cards():
    text = (ROOT / "docs" / "guide.md").read_text()
    for row in keras_imm.presets.metadata("imm_fashion_mnist")["training"]["quality"]:
        pattern = (
            rf"^\| {row['steps']} \| {row['frechet']:.2f} \| .*{row['agreement']:.3f}"
        )
        assert re.search(pattern, text, re.MULTILINE), row
