"""The benchmarks of speed: they compare what agrees, and their tables say it."""

import json

import pytest
from scripts import run_code, run_script

pytestmark = pytest.mark.any_backend("a benchmark, of what is tested on each")

TRACED = {"torch": "eager", "jax": "jit", "tensorflow": "tf.function"}


def cells(output, columns):
    rows = [line.strip("| ").split(" | ") for line in output.splitlines()]
    heads = ("---", "kernel", "batch")
    return [row for row in rows if len(row) == columns and row[0] not in heads]


def test_fit_trains_as_the_loop_written_by_hand(tmp_path, backend):
    """Losses and weights agree, or the script fails before it times anything."""
    fit = "fit jit_compile=False" if backend == "tensorflow" else "fit"
    result = run_script(
        "benchmarks/train_step.py",
        *("--nofresh", "--epochs=1", "--steps=2", "--batch_size=16"),
        f"--fits={fit}",
        f"--out={tmp_path / 'train_step.json'}",
    )
    assert result.returncode == 0, result.stderr
    described = json.loads((tmp_path / "train_step.json").read_text())
    losses, weights = described["agreement"]
    assert losses < 1e-5 and weights < 1e-3
    ours, by_hand = described["rows"]
    assert (ours["name"], by_hand["name"]) == (fit, TRACED[backend])
    assert by_hand["ratio"] > 0 and "ratio" not in ours
    assert described["backend"] == backend and "--steps=2" in described["command"]


@pytest.mark.long("another script of these is tested")
def test_generate_samples_as_the_sampler_written_by_hand(tmp_path, backend):
    result = run_script(
        "benchmarks/sample.py",
        *("--seconds=0", "--batch_sizes=3", "--num_steps=1,3"),
        f"--by_hand={TRACED[backend]}",
        f"--out={tmp_path / 'sample.json'}",
    )
    assert result.returncode == 0, result.stderr
    described = json.loads((tmp_path / "sample.json").read_text())
    assert [row["num_steps"] for row in described["rows"]] == [1, 3]
    for row in described["rows"]:
        assert row["by_hand"] == TRACED[backend]
        assert min(row[k] for k in ("ratio", "guided", "guided_ratio")) > 0
    assert len(cells(result.stdout, 9)) == 2


@pytest.mark.long("another script of these is tested")
def test_a_loop_that_trains_otherwise_is_found(backend):
    """Half the learning rate, in the loop alone."""
    if backend == "tensorflow":
        pytest.skip("the check is one function: two backends are enough")
    code = (
        "import train_step, measuring\n"
        "from absl import flags\n"
        "flags.FLAGS(['x', '--batch_size=16', '--steps=1'])\n"
        "loop = measuring.hand_written_loop\n"
        "measuring.hand_written_loop = lambda n, m, r, e: loop(n, m, r / 2, e)\n"
        "name = {'torch': 'eager', 'jax': 'jit'}[train_step.keras.backend.backend()]\n"
        "train_step.check_agreement({'fit': ({}, [name])})\n"
    )
    result = run_code(code, "benchmarks")
    assert result.returncode != 0
    assert "The loops do not train alike" in result.stderr


@pytest.mark.long("another script of these is tested")
@pytest.mark.one_backend("it starts processes of JAX whatever the backend")
def test_what_devices_tell_each_other(tmp_path):
    """All gradients, once: as many bytes as the trained weights, and little more."""
    out = tmp_path / "scaling.json"
    result = run_script(
        "benchmarks/scaling.py",
        *("--parts=devices", "--device_counts=2", "--hidden_size=32", "--depth=1"),
        *("--batch_size=8", f"--out={out}"),
        KERAS_BACKEND="jax",
    )
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(out.read_text())["devices"]
    assert row["devices"] == 2 and row["collectives"] == ["all-reduce"]
    # The tables of the embeddings are weights, and are not trained.
    tables = 4 * (2 * 128 + 16 * 16 * 32)
    trained = row["weights_bytes"] - tables
    assert trained <= row["all_reduced_bytes"] < trained + 1000


@pytest.mark.long("another script of these is tested")
@pytest.mark.one_backend("PyTorch's profiler is the one that needs no accelerator")
def test_a_profile_names_kernels_attention_and_the_loss():
    result = run_script(
        "benchmarks/profile_step.py",
        *("--batch_size=8", "--profiled_steps=1", "--slowest=3"),
    )
    assert result.returncode == 0, result.stderr
    kernels = cells(result.stdout, 3)
    assert len(kernels) == 3 and kernels[0][0].startswith("`aten::")
    assert "scaled_dot_product" in result.stdout.split("Attention: ")[1]
    assert "without the network" in result.stdout


@pytest.mark.long("another script of these is tested")
@pytest.mark.one_backend("it starts processes of the backend that is named")
def test_the_start_is_measured_in_parts(tmp_path, backend):
    out = tmp_path / "start.json"
    result = run_script(
        "benchmarks/start_up.py",
        *(f"--backends={backend}", "--processes=1", f"--out={out}"),
    )
    assert result.returncode == 0, result.stderr
    (parts,) = json.loads(out.read_text()).values()
    assert parts["first step"] > parts["step"] > 0
    assert parts["first sample"] > parts["sample"] > 0
