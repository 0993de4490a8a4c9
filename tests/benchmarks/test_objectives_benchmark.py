"""benchmarks/objectives.py and claims.py: tables, budgets, and a step of each run."""

import json

import pytest
from scripts import run_code, run_script

pytestmark = [
    pytest.mark.one_backend("objectives are tested on each; these are their runs"),
    pytest.mark.slow("trains in processes of its own"),
]


def rows(*frechet, steps=(1, 2, 4, 8, 32)):
    return [
        {"steps": n, "frechet": f, "agreement": 0.9}
        for n, f in zip(steps, frechet, strict=True)
    ]


def test_the_table_of_objectives(tmp_path):
    common = {"trial": None, "budget": "steps", "backend": "jax"}
    common |= {"training_steps": 4000, "seconds_per_step": 0.02}
    runs = [
        {"name": "MeanFlow", "seed": 0, "results": rows(1, 2, 3, 4, 5), **common},
        {"name": "MeanFlow", "seed": 1, "results": rows(3, 2, 3, 4, 5), **common},
        {"name": "SoFlow", "seed": 0, "results": rows(7, 2, 3, 4, 5), **common},
    ]
    path = tmp_path / "objectives.json"
    path.write_text(json.dumps({"costs": {}, "runs": runs}))
    result = run_script("benchmarks/objectives.py", "--table", f"--out={path}")
    assert result.returncode == 0, result.stderr
    _, _, mean_flow, so_flow = result.stdout.splitlines()
    assert mean_flow.startswith(
        "| MeanFlow | steps | jax | 0, 1 | 4,000 | 20.0 | 2.000 | 2.000 ± 1.000 /"
    )
    assert so_flow.startswith(
        "| SoFlow | steps | jax | 0 | 4,000 | 20.0 | 7.000 | 7.000 /"
    )


def test_the_table_of_claims(tmp_path):
    run = {"claim": "kernel", "backend": "jax", "seed": 0}
    runs = [
        {**run, "variant": "RBF", "results": rows(4, 3, 2, 1, steps=(1, 2, 4, 8))},
        {**run, "variant": "energy", "results": rows(5, 3, 2, 1, steps=(1, 2, 4, 8))},
    ]
    path = tmp_path / "claims.json"
    path.write_text(json.dumps(runs))
    result = run_script("benchmarks/claims.py", "--table", f"--out={path}")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "### kernel"
    assert lines[4].startswith("| RBF | jax | 0 | 4.000 / 0.900 |")


STEPS = """
import sys, objectives as benchmark
from keras_imm import objectives
benchmark.FLAGS(["x", "--steps=600", "--budget=" + sys.argv[1]])
costs = {"IMM, as published": 2.0, "flow matching": 1.0}
print(benchmark.steps_of("flow matching", costs))
"""


def test_budgets():
    code = "import sys\nsys.argv = ['x', {!r}]\n" + STEPS
    found = {}
    for budget in ("steps", "passes", "time"):
        result = run_code(code.replace("{!r}", repr(budget)), "benchmarks")
        assert result.returncode == 0, result.stderr
        found[budget] = int(result.stdout)
    assert found == {"steps": 600, "passes": 800, "time": 1200}


@pytest.mark.parametrize("benchmark", ["objectives", "claims"])
def test_every_run_takes_a_step(benchmark):
    code = f"""
import budgets, keras
budgets.rows_of = lambda *_: []
import {benchmark} as benchmark
benchmark.FLAGS(["x"])
data = budgets.Data("digits")
if {benchmark!r} == "objectives":
    runs = [(name, None) for name in benchmark.CONFIGURATIONS]
    runs += [(name, trial) for name, all in benchmark.TRIALS.items() for trial in all]
    models = (benchmark.build(data, *run, 0, 8) for run in runs)
else:
    runs = [(c, v) for c in benchmark.CLAIMS for v in benchmark.CLAIMS[c]]
    models = (benchmark.build(data, benchmark.CLAIMS[c][v], 0, 8) for c, v in runs)
assert len(runs) > 30
if {benchmark!r} == "objectives":
    assert all(len(trials) == 4 for trials in benchmark.TRIALS.values())
for run, model in zip(runs, models):
    model.compile("sgd", run_eagerly=True)
    model.objective.total_steps = 8
    loss = model.train_on_batch(*(array[:32] for array in data.arrays))
    assert loss == loss, run
"""
    result = run_code(code, "benchmarks")
    assert result.returncode == 0, result.stderr
