"""The search over settings: what is there is not run again; the table of all."""

import json

import pytest
from long_tests import long
from scripts import run_code, run_script

pytestmark = [
    pytest.mark.one_backend("its runs are those of the examples, which are tested"),
    pytest.mark.slow("starts processes"),
]


def result(setting, seed, *frechet):
    rows = [
        {"steps": n, "frechet": f, "agreement": 0.9}
        for n, f in zip((1, 2), frechet, strict=True)
    ]
    return {"setting": setting, "flags": {"seed": seed}, "results": rows}


def test_the_table_has_means_sorted_by_two_steps(tmp_path):
    path = tmp_path / "search.json"
    found = [result("a", 10, 0.3, 0.2), result("b", 10, 0.2, 0.1)]
    path.write_text(json.dumps([*found, result("a", 11, 0.1, 0.12)]))
    table = run_script("benchmarks/recipe_search.py", "--table", f"--out={path}")
    assert table.returncode == 0, table.stderr
    assert table.stdout.splitlines()[2:] == [
        "| b | 10 | 0.200 / 0.900 | 0.100 / 0.900 |",
        "| a | 10, 11 | 0.200 / 0.900 | 0.160 / 0.900 |",
    ]


@pytest.mark.parametrize(
    "data", ["digits", *long("digits are tested", "fashion_mnist")]
)
def test_a_search_that_was_stopped_goes_on(tmp_path, data):
    """Each setting and seed is run once, in two calls of which the first is cut."""
    code = f"""
import sys, recipe_search as search
from absl import app
calls = []

def run(setting, seed):
    if len(calls) == 3:
        raise KeyboardInterrupt
    calls.append((setting, seed))
    return {{"flags": {{"seed": seed}}, "results": []}}

search.run = run
try:
    app.run(search.main, ["x", "--data={data}", "--seeds=1,2", *sys.argv[1:],
                          "--out={tmp_path / "search.json"}"])
except KeyboardInterrupt:
    pass
"""
    for _ in range(2):
        run_code(code, "benchmarks")
    path = tmp_path / "search.json"
    found = json.loads(path.read_text())
    keys = [(one["setting"], one["flags"]["seed"]) for one in found]
    assert len(keys) == len(set(keys)) == 6
    assert {seed for _, seed in keys} == {1}
