"""The tables of benchmarks/quality_fashion.py, of results made up here."""

import json

import pytest
from scripts import run_code, run_script

pytestmark = pytest.mark.one_backend("prints tables")


def results(frechet):
    return {
        "steps": 600,
        "seconds": {"per_step": 0.25},
        "results": [
            {
                "steps": n,
                "frechet": frechet / n,
                "frechet_ratio": 10 / n,
                "agreement": 0.5,
            }
            for n in (1, 2)
        ],
        "epochs": [
            {"epoch": e, "frechet_2_steps": 8.0 / e, "agreement_2_steps": e / 10}
            for e in (1, 2, 3)
        ],
    }


@pytest.fixture
def folder(tmp_path):
    for name, frechet in (("dit_torch_0", 4.0), ("flow_matching_jax_1", 6.0)):
        (tmp_path / name).mkdir()
        text = json.dumps(results(frechet))
        (tmp_path / name / "metrics.json").write_text(text)
    return tmp_path


def lines(folder, *given):
    place = f"--out={folder}", f"--file={folder}/kept.json"
    result = run_script("benchmarks/quality_fashion.py", *place, *given)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_table_of_results(folder):
    _, _, dit, flow = lines(folder, "--table")
    assert dit == (
        "| dit | torch | 2 cores | 0 | 600 | 250 "
        "| 4.00 (10) / 0.500 | 2.00 (5) / 0.500 |"
    )
    assert flow.startswith(
        "| flow_matching | jax | 2 cores | 1 | 600 | 250 | 6.00 (10)"
    )


def test_runs_that_were_kept_are_in_the_table(folder, tmp_path):
    before = lines(folder, "--table")
    assert not lines(folder, "--keep")
    assert lines(folder, "--table") == before
    assert lines(folder, "--table", f"--out={tmp_path}/none") == before


def test_the_machine_is_that_of_the_runs_that_were_added(folder):
    assert not lines(folder, "--keep", "--machine=a card")
    assert "| a card |" in lines(folder, "--table")[2]
    assert not lines(folder, "--keep", "--machine=another")
    assert "| a card |" in lines(folder, "--table")[2]


def test_the_curves_of_training(folder):
    header, _, dit, _ = lines(folder, "--curves")
    assert "| 12% | 25% |" in header
    assert dit.startswith("| dit | torch | 0 | 8.0 / 0.10 |")
    assert dit.endswith("| 2.7 / 0.30 |")


def test_the_flags_of_runs_are_the_example_s():
    code = "import json, quality_fashion; print(json.dumps(quality_fashion.RUNS))"
    result = run_code(code, "benchmarks")
    assert result.returncode == 0, result.stderr
    code = f"""
import fashion_mnist as example
from absl.flags import FLAGS
for name, (flags, factor) in {json.loads(result.stdout)!r}.items():
    for flag in FLAGS:
        FLAGS[flag].unparse()
    example.FLAGS(["x", "--steps=200", *(f"--{{k}}={{v}}" for k, v in flags.items())])
    example.choose_flags()
    model = example.build_model(200)
    print(name, type(model.backbone).__name__, type(model.objective).__name__)
"""
    result = run_code(code, "examples")
    assert result.returncode == 0, result.stderr
    found = [line.split() for line in result.stdout.splitlines()]
    assert ["flow_matching", "DiT", "FlowMatching"] in found
    assert ["cifar10", "UNet", "MomentMatching"] in found
    assert len(found) == 8
