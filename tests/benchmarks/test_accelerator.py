"""What benchmarks/gpu.sh runs, at the size of digits on a CPU."""

import json
import subprocess
import sys

import pytest
from scripts import ROOT, run_code, run_script

pytestmark = pytest.mark.any_backend("a benchmark, of what is tested on each")

ONE = pytest.mark.one_backend("it starts processes of the backend that is named")
SMALL = (
    *("--batch_size=8", "--steps=2", "--epochs=1", "--profiled_steps=1"),
    *("--images=2", "--num_steps=1,2"),
)


@ONE
def test_every_stage_leaves_its_figures(tmp_path):
    out = tmp_path / "digits.json"
    result = run_script(
        "benchmarks/accelerator.py",
        *(*SMALL, "--stages=step,kernels,loss,generate", f"--out={out}"),
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    assert found["model"] == "digits" and found["batch_size"] == 8
    step = found["step"]
    assert step["images_per_second"] == pytest.approx(8000 / step["median_ms"])
    assert step["peak_gib"] > step["predicted_gib"] > 0
    shares = [v for k, v in found["kernels"].items() if k.endswith("_share")]
    assert len(shares) == 3 and all(0 <= share < 1 for share in shares)
    assert found["kernels"]["products_share"] > 0
    assert found["loss"]["loss_ms"] > 0
    assert {"1_steps_ms", "2_steps_ms"} < set(found["generate"])
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


@ONE
@pytest.mark.long("on a CPU there are none")
def test_cuda_graphs_are_compared_with_none(tmp_path):
    """They are none on a CPU, where both compute the same."""
    out = tmp_path / "digits.json"
    options = (*SMALL, "--stages=cuda_graphs", f"--out={out}")
    result = run_script("benchmarks/accelerator.py", *options)
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())["cuda_graphs"]
    if found.keys() == {"note", "stage_seconds"}:
        assert "PyTorch" in found["note"]
        return
    assert found["difference"] == {"losses": 0.0, "samples": 0.0}
    for figures in (found["with"], found["without"]):
        assert figures["replays"] == 0
        assert min(figures["median_ms"], figures["2_steps_ms"]) > 0


@ONE
def test_a_stage_that_fails_stops_no_other(tmp_path):
    out = tmp_path / "digits.json"
    code = (
        "import sys\n"
        f"sys.argv = ['accelerator.py', *{SMALL!r}, '--stages=kernels,loss',\n"
        f"            '--out={out}']\n"
        "import accelerator\n"
        "def kernels(model):\n"
        "    raise MemoryError('all of it')\n"
        "accelerator.kernels = kernels\n"
        "accelerator.app.run(accelerator.main)\n"
    )
    result = run_code(code, "benchmarks")
    assert result.returncode == 1
    found = json.loads(out.read_text())
    assert found["kernels"]["error"] == "MemoryError: all of it"
    assert found["loss"]["loss_ms"] > 0


@ONE
def test_goals_are_met_or_not(tmp_path):
    results = {"model": "dit_xl_2", "batch_size": 128}
    results["step"] = {"median_ms": 300.0, "utilisation": 0.44, "peak_gib": 50.0}
    results["kernels"] = {"optimizer_share": 0.03}
    results["loss"] = {"error": "RuntimeError: out of memory"}
    (tmp_path / "dit_xl_2_jax.json").write_text(json.dumps(results))
    small = results | {"model": "dit_s_2", "loss": {"loss_ms": 2.0}}
    small["by_hand"] = {"median_ms": 310.0}
    (tmp_path / "dit_s_2_torch.json").write_text(json.dumps(small))
    shown = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "goals.py", tmp_path],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "| dit_xl_2_jax | 128 | 300.0 |  | 44.0% | 50.0 |" in shown
    assert [line for line in shown.splitlines() if line.startswith("-")] == [
        "- dit_s_2_torch: loss without the network at most 1%: 0.007, met",
        "- dit_s_2_torch: `fit` at most 1.0 x by hand: 0.968, met",
        "- dit_xl_2_jax: utilisation at least 45%: 0.440, NOT met",
        "- dit_xl_2_jax: optimizer and averages at most 4%: 0.030, met",
        "- dit_xl_2_jax: loss without the network at most 1%: not measured",
    ]


@ONE
def test_failures_are_written_as_they_happen(tmp_path):
    (tmp_path / "test_one.py").write_text(
        "def test_wrong():\n    assert 1 + 1 == 3\n\n\ndef test_right():\n    pass\n"
    )
    log = tmp_path / "failed.txt"
    code = (
        "import os, sys, pytest\n"
        f"os.environ['FAILED_TESTS'] = {str(log)!r}\n"
        "os.environ.pop('PYTEST_XDIST_WORKER', None)\n"
        f"sys.exit(pytest.main(['-q', '-p', 'failed_tests', '-p', 'no:cacheprovider',"
        f" '-c', os.devnull, {str(tmp_path)!r}]))\n"
    )
    assert run_code(code, "benchmarks").returncode == 1
    (line,) = log.read_text().splitlines()
    assert "test_wrong" in line and "assert (1 + 1) == 3" in line
    log.unlink()
    (tmp_path / "test_one.py").write_text("import no_such_module\n")
    assert run_code(code, "benchmarks").returncode != 0
    (line,) = log.read_text().splitlines()
    assert "test_one.py" in line and "no_such_module" in line
