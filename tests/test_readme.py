"""What README.md, docs/guide.md and docs/models.md say can be run."""

import os
import pathlib
import re

import keras
import numpy as np
import pytest

import keras_imm
from keras_imm.checkpoints import official

pytestmark = pytest.mark.slow("trains what the page shows")

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden"


def examples(page):
    text = (ROOT / page).read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def small_checkpoint(name):
    """A small network in the place of a published one."""
    unet = name == "cifar10"
    return GOLDEN / (
        "unet_ddpmpp_simple_edm.pkl" if unet else "dit_euler_fm_stride.pkl"
    )


@pytest.mark.any_backend("what the page shows is tested on each")
def test_the_example_of_the_guide_runs(tmp_path, monkeypatch):
    code, serving, _ = examples("docs/guide.md")
    assert "epochs=280" in code
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("epochs=280", "epochs=1"), names)
    assert names["samples"].shape == (5, 8, 8, 1)
    assert np.isfinite(names["samples"]).all()
    assert names["model"].optimizer.iterations == 14
    if keras.backend.backend() == "tensorflow":  # the others export in a process more
        exec(serving, names)
        assert (tmp_path / "served" / "digits" / "1" / "saved_model.pb").exists()
        assert (tmp_path / "digits.onnx").exists()


def test_a_folder_of_images_is_trained_on(tmp_path, monkeypatch):
    """The second block of README.md, with small images and a smaller network."""
    first, code = examples("README.md")
    code = first.partition("\nmodel")[0] + code
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the block sets a backend
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(0, 256, (20, 24, 3))
            keras.utils.save_img(tmp_path / "photos" / name / f"{i}.png", pixels)
    short = {
        "image_size=64": "image_size=16",
        "batch_size=64": "batch_size=8",
        "hidden_size=384": "hidden_size=24",
        "depth=6": "depth=1",
        "epochs=100": "epochs=1",
        "steps_per_epoch=1000": "steps_per_epoch=2",
    }
    for old, new in short.items():
        assert old in code
        code = code.replace(old, new)
    names = {}
    exec(code, names)
    model = names["model"]
    assert model.optimizer.iterations == 2
    assert model.backbone.num_classes == 2
    assert model.generate([0, 1]).shape == (2, 16, 16, 3)


def test_the_first_lines_draw_clothes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the block sets a backend
    names = {}
    exec(examples("README.md")[0], names)
    clothes = names["clothes"]
    assert clothes.shape == (10, 28, 28, 1) and clothes.dtype == np.uint8
    picture = keras.utils.img_to_array(keras.utils.load_img(tmp_path / "clothes.png"))
    np.testing.assert_array_equal(picture[..., 0], np.hstack(clothes)[..., 0])
    # Ten pieces, which a classifier that never saw the model takes for what they are.
    classifier = keras_imm.metrics.FashionMNISTClassifier()
    seen = np.argmax(classifier.outputs_of(clothes)["logits"], axis=-1)
    assert np.mean(seen == np.arange(10)) >= 0.6


def test_the_checkpoints_are_loaded_as_the_pages_say(monkeypatch):
    monkeypatch.setattr(official, "fetch", small_checkpoint)
    for page in ("docs/guide.md", "docs/models.md"):
        code = "import keras_imm\n" + examples(page)[-1].replace("[207, 360]", "[7, 3]")
        names = {}
        exec(code, names)
        assert names["images"].shape == (16, 16, 16, 3)
        assert np.isfinite(names["images"]).all()
    assert names["latents"].shape == (2, 8, 8, 4)


def test_links_lead_to_files():
    for page in ("README.md", "docs/guide.md", "docs/models.md"):
        links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / page).read_text())
        missing = [
            link for link in links if not (ROOT / page).parent.joinpath(link).exists()
        ]
        assert not missing
        assert links or page != "README.md"
