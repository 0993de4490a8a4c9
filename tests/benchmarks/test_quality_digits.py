"""The quality benchmark: one short run of both methods, and the table of many."""

import json

import pytest
from scripts import run_code, run_script
from small_dit import small_dit

import keras_imm

pytestmark = pytest.mark.one_backend("tests/examples run what it is made of")


def metrics(method, backend, seed, quality, **more):
    return {
        "method": method,
        "backend": backend,
        "flags": {"seed": seed, "steps": 4000},
        "results": [{"steps": n, "frechet": f, "agreement": a} for n, f, a in quality],
        "seconds": {"training_without_compilation": 200.0},
        **more,
    }


def print_table(folder, runs):
    for i, one in enumerate(runs):
        (folder / str(i)).mkdir()
        (folder / str(i) / "metrics.json").write_text(json.dumps(one))
    return run_script("benchmarks/quality_digits.py", "--table", f"--out={folder}")


def test_the_table_has_a_row_per_run_and_the_means(tmp_path):
    runs = [
        metrics("imm", "jax", 1, [(1, 0.14, 0.95), (2, 0.08, 0.96)]),
        metrics("imm", "jax", 0, [(1, 0.12, 0.93), (2, 0.06, 0.94)]),
        metrics(
            "flow_matching", "jax", 0, [(1, 2.5, 1), (2, 0.75, 1)], training_steps=5000
        ),
        metrics("imm", "torch", 0, [(2, 0.05, 0.97)]),  # measured at 2 steps alone
    ]
    result = print_table(tmp_path, runs)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in lines] == [8] * 7
    assert lines[2:] == [
        "| jax | 0 | flow matching | 40.0 | 5000 | 2.500 / 1.000 | 0.750 / 1.000 |",
        "| jax | 0 | IMM | 50.0 | 4000 | 0.120 / 0.930 | 0.060 / 0.940 |",
        "| jax | 1 | IMM | 50.0 | 4000 | 0.140 / 0.950 | 0.080 / 0.960 |",
        "| jax | mean | IMM | | | 0.130 / 0.940 | 0.070 / 0.950 |",
        "| torch | 0 | IMM | 50.0 | 4000 |  | 0.050 / 0.970 |",
    ]


def test_a_table_of_nothing_is_refused(tmp_path):
    result = print_table(tmp_path, [])
    assert result.returncode != 0 and "no results in" in result.stderr


def test_the_baseline_trains_for_the_time_given(tmp_path):
    result = run_script(
        "benchmarks/flow_matching_digits.py",
        "--seconds=2",
        "--batch_size=32",
        "--num_samples=80",
        "--sampling_steps=1,2",
        f"--out={tmp_path}",
    )
    assert result.returncode == 0, result.stderr
    measured = json.loads((tmp_path / "metrics.json").read_text())
    assert measured["training_steps"] > 1
    assert 2 <= measured["seconds"]["training_without_compilation"] < 4
    assert [row["steps"] for row in measured["results"]] == [1, 2]
    assert (tmp_path / "samples.png").exists()


def test_the_baseline_s_learning_rate_rises_and_falls_with_the_time():
    code = """
import types
from flow_matching_digits import WallClock
clock = WallClock(seconds=10.0, learning_rate=4.0, warmup_steps=4)
clock.set_model(types.SimpleNamespace(optimizer=types.SimpleNamespace()))
rates = []
for clock.steps, clock.elapsed in [(0, 0), (1, 0), (4, 0), (9, 5), (19, 10), (29, 11)]:
    clock.on_epoch_begin(0)
    rates.append(clock.model.optimizer.learning_rate)
print(rates)
"""
    result = run_code(code, "benchmarks")
    assert result.returncode == 0, result.stderr
    rates = json.loads(result.stdout.splitlines()[-1])
    assert rates == pytest.approx([1, 2, 4, 2, 0, 0], abs=1e-9)


def test_quality_by_time_measures_a_jump_from_each_time(tmp_path):
    mapping = keras_imm.time_mappings.EtaDecrement(k=12)
    backbone = small_dit(image_shape=(8, 8, 1), num_classes=10)
    model = keras_imm.IMM(backbone, time_mapping=mapping)
    model.save(tmp_path / "model.keras")
    result = run_script(
        "benchmarks/quality_by_time.py",
        f"--model={tmp_path / 'model.keras'}",
        "--times=0.5,0.05",
    )
    assert result.returncode == 0, result.stderr
    rows = [line.split("|")[1:-1] for line in result.stdout.splitlines()[-2:]]
    (t, gap, noisy, _), (_, _, clean, agreement) = (map(float, row) for row in rows)
    # eta falls from 1 by (0.994 / 0.006) / 2^12; a new network leaves x_t as it is.
    eta = 1 - 0.994 / 0.006 / 4096
    assert (t, gap) == (0.5, pytest.approx(0.5 - eta / (1 + eta), rel=0.05))
    assert clean < 0.1 < 1 < noisy and agreement > 0.95
