"""The benchmark of reading, at sizes where only its table means something."""

import pytest
from scripts import run_script

pytestmark = pytest.mark.one_backend("what it measures is NumPy code")


def test_the_speed_of_reading():
    result = run_script(
        "benchmarks/input_pipeline.py",
        "--preset=dit_s_8",
        "--train_batch_size=4",
        "--train_steps=2",
        "--batch_size=4",
        "--num_images=8",
        "--seconds=0.2",
    )
    assert result.returncode == 0, result.stderr
    sentence, _, _, *rows = result.stdout.splitlines()
    trained = float(sentence.split(" images per second trained")[0].split()[-1])
    assert "on torch" in sentence
    assert len(rows) == 3
    for row in rows:
        _, clock, core, cores = row.strip("| ").split(" | ")
        assert float(clock) > 1
        assert float(cores) == pytest.approx(trained / float(core), rel=0.1)
