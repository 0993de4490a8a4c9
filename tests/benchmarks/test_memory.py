"""The benchmarks of memory, at sizes where only their tables mean something."""

import json

import pytest
from scripts import run_script

pytestmark = pytest.mark.any_backend("a benchmark, of what is tested on each")


def rows(output):
    cells = [line.strip("| ").split(" | ") for line in output.splitlines()]
    return [row for row in cells if len(row) == 5][1:]


@pytest.mark.long("another script of these is tested")
def test_the_memory_of_a_step(tmp_path, backend):
    if backend != "torch":
        pytest.skip("one backend is enough: torch compiles nothing")
    result = run_script(
        "benchmarks/remat_memory.py",
        "--backends=torch",
        "--hidden_size=16",
        "--depth=1",
        "--batch_size=4",
        f"--out={tmp_path / 'peaks.json'}",
    )
    assert result.returncode == 0, result.stderr
    peaks = json.loads((tmp_path / "peaks.json").read_text())["torch"]
    assert list(peaks) == ["no step", "kept", "remat"]
    assert min(peaks.values()) > 100
    (row,) = rows(result.stdout)
    assert row[:4] == ["torch", *(f"{peak:.0f}" for peak in peaks.values())]


def test_building_a_preset(backend):
    result = run_script(
        "benchmarks/build_xl.py", "--preset=dit_s_8", f"--backends={backend}"
    )
    assert result.returncode == 0, result.stderr
    ((name, _, weights, peak, _),) = rows(result.stdout)
    assert name == backend
    assert float(weights) == round(33_289_984 * 4 / 2**20)  # see test_dit.py
    assert float(peak) > float(weights)
