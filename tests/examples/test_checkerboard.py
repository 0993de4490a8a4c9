"""The checkerboard example from end to end, in a process of its own."""

import json

import numpy as np
import pytest
from PIL import Image
from scripts import run_code, run_script

pytestmark = pytest.mark.any_backend("training is tested on each")


def test_it_draws_the_data_beside_the_samples(tmp_path):
    result = run_script(
        "examples/checkerboard.py",
        "--steps=5",
        "--num_samples=5000",
        f"--out={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    picture = np.asarray(Image.open(tmp_path / "checkerboard.png").convert("L"))
    panels = np.array_split(picture.astype(float), 3, axis=1)
    assert min(panel.std() for panel in panels) > 10, "a panel is blank"


def test_the_board_has_its_squares_and_its_scale():
    result = run_code(
        """
import json, numpy as np, two_dimensions
points = two_dimensions.checkerboard(np.random.default_rng(0), 100_000)
edges = np.linspace(-1, 1, 5) * np.sqrt(0.75)
counts, _, _ = np.histogram2d(*points.T, bins=[edges, edges])
print(json.dumps([str(points.dtype), points.std(axis=0).tolist(), counts.tolist()]))
""",
        "examples",
    )
    assert result.returncode == 0, result.stderr
    dtype, std, counts = json.loads(result.stdout)
    assert dtype == "float32"
    np.testing.assert_allclose(std, 0.5, rtol=0.01)
    dark = np.indices((4, 4)).sum(axis=0) % 2 == 0
    np.testing.assert_allclose(counts, dark * 100_000 / 8, rtol=0.05)
