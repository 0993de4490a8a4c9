"""The bars of a training step: medians over runs that are there."""

import json

import pytest
from scripts import run_script

pytestmark = [
    pytest.mark.one_backend("reads files of all backends"),
    pytest.mark.slow("starts a process"),
]


def test_medians_over_runs_meet_their_bars_or_miss_them(tmp_path):
    for number, ratio in enumerate((0.7, 0.9, 0.77)):
        rows = [
            {"name": "fit", "median_ms": 30.0 + number},
            {"name": "jit", "median_ms": 40.0, "ratio": ratio},
        ]
        (tmp_path / f"jax-{number}.json").write_text(json.dumps({"rows": rows}))
        rows = [
            {"name": "fit", "median_ms": 30.0},
            {"name": "eager", "median_ms": 20.0, "ratio": 1.5},
        ]
        (tmp_path / f"torch-{number}.json").write_text(json.dumps({"rows": rows}))
    flags = ("--runs=3", "--backends=torch,jax", f"--out={tmp_path}")
    result = run_script("benchmarks/step_bars.py", *flags)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    each = "1.500, 1.500, 1.500 | 1.500 | 1.0 | missed |"
    assert lines[2:] == [
        f"| torch | fit | 30.00 | eager | 20.00 | {each}",
        "| jax | fit | 31.00 | jit | 40.00 "
        "| 0.700, 0.900, 0.770 | 0.770 | 0.78 | met |",
    ]
