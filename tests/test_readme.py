"""The example in the README runs as it stands, but for its 280 epochs."""

import pathlib
import re

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_example_runs():
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert "epochs=280" in code
    names = {}
    exec(code.replace("epochs=280", "epochs=1"), names)
    assert names["samples"].shape == (5, 8, 8, 1)
    assert np.isfinite(names["samples"]).all()
    assert names["model"].optimizer.iterations == 14


def test_links_lead_to_files():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    missing = [link for link in links if not (ROOT / link).exists()]
    assert not missing
