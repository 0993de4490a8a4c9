"""docs/own_images.md, on a small folder with a broken file."""

import os
import pathlib
import re

import keras
import numpy as np
import pytest

import keras_imm

pytestmark = [
    pytest.mark.any_backend("what the page shows is tested on each"),
    pytest.mark.slow("trains what the page shows"),
]

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "own_images.md"
SHORT = {
    "steps_per_epoch=500": "steps_per_epoch=2",
    "epochs=40": "epochs=1",
    "epochs=10": "epochs=1",
    "batch_size=64": "batch_size=16",
    "hidden_size=128": "hidden_size=16",
    "num_heads=4": "num_heads=2",
    "depth=4": "depth=1",
}


def test_own_images(tmp_path, monkeypatch, capsys):
    """The blocks of own_images.md in their order; the one that fetches is left out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", keras.backend.backend())
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the page sets a backend
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(20):
            pixels = rng.integers(0, 256, (40, 36 + 4 * i, 3))
            keras.utils.save_img(folder / f"{i:02d}.png", pixels)
    (tmp_path / "photos" / "cats" / "05.png").write_bytes(b"no image")
    text = re.sub(r"<!-- not run[^`]*```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    codes = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    names = {}
    for old, new in SHORT.items():
        assert any(old in code for code in codes)
        codes = [code.replace(old, new) for code in codes]
    for code in codes:
        exec(compile(code, str(PAGE), "exec"), names)
    assert "05.png" in capsys.readouterr().out
    assert names["held_out"].shape == (4, 32, 32, 3)
    assert sorted(names["labels"]) == [0, 0, 1, 1]
    assert names["features"](names["held_out"]).shape == (4, 48)
    assert names["model"].optimizer.iterations == 2  # of the second run
    assert (tmp_path / "samples.png").exists()
    assert (tmp_path / "runs" / "photos" / "samples" / "001.png").exists()
    model = keras_imm.FlowMapModel.from_preset("runs/photos/preset")
    assert list(model.class_names) == ["cats", "dogs"]
