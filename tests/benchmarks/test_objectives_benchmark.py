"""benchmarks/objectives.py and claims.py: tables, budgets, and a step of each run."""

import json

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT, run_code, run_script

import keras_imm

pytestmark = [
    pytest.mark.one_backend("objectives are tested on each; these are their runs"),
    pytest.mark.slow("trains in processes of its own"),
]


def rows(*frechet, steps=(1, 2, 4, 8, 32)):
    found = {"agreement": 0.9, "precision": 0.7, "recall": 0.6}
    return [
        {"steps": n, "frechet": f, **found} for n, f in zip(steps, frechet, strict=True)
    ]


def one_run(name, seed, *frechet, **other):
    return {
        **{"name": name, "seed": seed, "trial": None, "budget": "steps"},
        **{"tuning": False, "backend": "jax", "training_steps": 4000},
        **{"seconds_per_step": 0.02, "peak_mebibytes": 500.4},
        "results": rows(*frechet),
        **other,
    }


COSTS = {"jax": {"SoFlow": 0.02}}


def write_runs(path, *runs):
    path.write_text(json.dumps({"costs": COSTS, "runs": runs}))


def table_of(path, *given):
    result = run_script("benchmarks/objectives.py", "--table", f"--out={path}", *given)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[2:]


def test_the_table_of_objectives(tmp_path):
    path = tmp_path / "objectives.json"
    write_runs(
        path,
        one_run("SoFlow", 0, 7, 2, 3, 4, 5),
        one_run("MeanFlow", 0, 1, 2, 3, 4, 5),
        one_run("MeanFlow", 1, 3, 2, 3, 4, 5),
        one_run("MeanFlow", 10, 8, 2, 3, 4, 5, tuning=True, trial="p 1"),
    )
    mean_flow, so_flow, tuning = table_of(path)
    assert mean_flow.startswith(
        "| MeanFlow | steps | jax | 0, 1 | 4,000 |  | 500 | 2.000 | 2.000 ± 1.000 /"
    )
    assert so_flow.startswith(
        "| SoFlow | steps | jax | 0 | 4,000 | 20.0 | 500 | 7.000 | 7.000 /"
    )
    assert tuning.startswith("| MeanFlow: p 1 | tuning | jax | 10 |")
    assert table_of(path, "--precision")[1].endswith(" 0.700 / 0.600 |")


def test_runs_of_other_files_are_added_once(tmp_path):
    path, other = tmp_path / "objectives.json", tmp_path / "other.json"
    run = one_run("MeanFlow", 0, 1, 2, 3, 4, 5)
    write_runs(path, run)
    write_runs(other, run, one_run("SoFlow", 0, 7, 2, 3, 4, 5))
    for _ in range(2):
        result = run_script(
            "benchmarks/objectives.py", f"--merge={other}", f"--out={path}"
        )
        assert result.returncode == 0, result.stderr
    merged = json.loads(path.read_text())
    assert [run["name"] for run in merged["runs"]] == ["MeanFlow", "SoFlow"]
    assert merged["costs"] == COSTS


def test_a_run_and_its_pictures(tmp_path):
    path, samples = tmp_path / "objectives.json", tmp_path / "samples"
    given = ["--name=SoFlow", "--steps=2", "--tuning", "--trials=0"]
    given += [f"--samples={samples}", f"--out={path}"]
    for _ in range(2):  # what is in the file is not run again
        result = run_script("benchmarks/objectives.py", *given)
        assert result.returncode == 0, result.stderr
    (run,) = json.loads(path.read_text())["runs"]
    assert [row["steps"] for row in run["results"]] == [1, 2, 4]
    assert run["training_steps"] == 2 and "log_residual" in run["logs"]
    (kept,) = samples.glob("*/0/SoFlow.npz")
    assert np.load(kept)["samples"].shape == (5, 10, 8, 8, 1)
    assert list(np.load(kept)["steps"]) == [1, 2, 4, 8, 32]
    for given in ([], [f"--samples={kept.parent}"]):
        picture = tmp_path / f"{len(given)}.png"
        result = run_script("benchmarks/draw_objectives.py", f"--out={picture}", *given)
        assert result.returncode == 0, result.stderr
        assert np.asarray(Image.open(picture).convert("L")).std() > 10


BEST = """
import json, sys
import objectives as benchmark
given = json.loads(sys.argv[1])
benchmark.FLAGS(["x", "--best", *given["flags"]])
print(json.dumps(benchmark.trials_of("MeanFlow", given["runs"], "jax")))
"""


def test_the_best_trial_is_that_of_the_tuning_runs():
    runs = [
        one_run("MeanFlow", 10, 1, 1, 8, 0, 0, tuning=True),  # 2, as means go
        one_run("MeanFlow", 10, 4, 1, 1, 9, 9, tuning=True, trial="p 1"),  # 1.59
        one_run("MeanFlow", 10, 5, 1, 1, 0, 0, tuning=True, trial="p 3/4"),
        one_run("MeanFlow", 0, 0.1, 0.1, 0.1, 0, 0, trial="share 1/4"),
        one_run("SoFlow", 10, 0.1, 0.1, 0.1, 0, 0, tuning=True, trial="p 1/2"),
    ]
    for flags, expected in (
        ([], ["p 1"]),
        (["--tuning", "--trials=2"], [None, "p 1", "share 1/4"]),
        (["--nobest"], [None]),
    ):
        given = json.dumps({"flags": flags, "runs": runs})
        result = run_code(
            f"import sys\nsys.argv = ['x', {given!r}]\n" + BEST, "benchmarks"
        )
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout.splitlines()[-1]) == expected


def test_the_table_of_claims(tmp_path):
    run = {"claim": "kernel", "backend": "jax", "seed": 0, "recipe": "published"}
    runs = [
        {**run, "variant": "RBF", "results": rows(4, 3, 2, 1, steps=(1, 2, 4, 8))},
        {**run, "variant": "energy", "results": rows(5, 3, 2, 1, steps=(1, 2, 4, 8))},
    ]
    runs[1]["history"] = {"interaction_share": [0.25, 0.5]}
    path = tmp_path / "claims.json"
    path.write_text(json.dumps(runs))
    result = run_script("benchmarks/claims.py", "--table", f"--out={path}")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == "### kernel"
    assert lines[4].startswith("| published | RBF | jax | 0 | 4.000 / 0.900 |")
    assert [line.split("|")[-2].strip() for line in lines[4:]] == ["", "0.375"]


CHECKERBOARD = """
import json
import numpy as np
import claims as benchmark

benchmark.FLAGS(["x", "--data=checkerboard"])
data = benchmark.data_of()
points = data.batches(20_000, 1, 0)[0]
rng = np.random.default_rng(0)
print(json.dumps([
    data.measure(points),  # the data: what 20,000 points of a uniform density vary
    data.measure(points[:, ::-1] * [-1, 1]),  # mirrored: the light squares
    data.measure(rng.uniform(-1, 1, (100_000, 2)) * 0.75**0.5),
    data.measure(points + 10),
]))
for claim in benchmark.ON_POINTS:
    for variant in benchmark.ON_POINTS[claim]:
        model = benchmark.build(data, benchmark.setting_of(claim, variant), 0)
        model.compile("sgd", run_eagerly=True)
        model.objective.total_steps = 8
        loss = model.train_on_batch(points[:256])
        assert loss == loss, (claim, variant)
"""


def test_the_checkerboard_and_its_measure():
    result = run_code(CHECKERBOARD, "benchmarks")
    assert result.returncode == 0, result.stderr
    data, light, uniform, elsewhere = json.loads(result.stdout.splitlines()[-1])
    assert data["off_board"] == 0 and 0.02 < data["total_variation"] < 0.045
    assert light["off_board"] == light["total_variation"] == 1
    assert uniform["off_board"] == pytest.approx(0.5, abs=0.01)
    assert uniform["total_variation"] == pytest.approx(0.5, abs=0.02)
    assert elsewhere == {"off_board": 1, "total_variation": 1}


SHARED = """
import json, sys
import claims as benchmark

trained = []
def child(claim, variants, seed):
    trained.append([claim, variants, seed])
    common = {"claim": claim, "seed": seed, "recipe": "published", "backend": "jax"}
    rows = [{"steps": 1, "frechet": 1.0}]
    return [{**common, "variant": v, "results": rows} for v in variants]
benchmark.child = child
benchmark.keras.backend.backend = lambda: "jax"
for seeds in ("0", "0,1"):
    benchmark.FLAGS(["x", "--claim=kernel", "--claim=sampler", "--claim=weighting",
                     f"--seeds={seeds}", "--out=" + sys.argv[1]])
    benchmark.main(None)
print(json.dumps(trained))
"""


def test_what_no_variant_changes_is_trained_once(tmp_path):
    path = tmp_path / "claims.json"
    result = run_code(
        f"import sys\nsys.argv = ['x', {str(path)!r}]\n" + SHARED, "benchmarks"
    )
    assert result.returncode == 0, result.stderr
    samplers = ["pushforward", "restart", "gamma 0.25", "gamma 0.5"]
    one_seed = [
        *(["kernel", [v]] for v in ("Laplace", "RBF", "energy", "pseudo-Huber 0.5")),
        ["sampler", samplers],
        *(["weighting", [v]] for v in ("uniform", "ELBO", "ELBO, alpha", "a = 2")),
    ]
    trained = json.loads(result.stdout.splitlines()[-1])
    assert trained == [[*one, seed] for seed in (0, 1) for one in one_seed]
    kept = json.loads(path.read_text())
    assert len(kept) == 2 * 13
    copied = [run for run in kept if run["variant"] == "a = 1"]
    assert [run["claim"] for run in copied] == ["weighting"] * 2


PIECES_OF_CLAIMS = """
import sys
sys.path.insert(0, {tests!r})
import claims, numpy as np
from gaussian_flow import gaussian_model
from keras_imm.time_distributions import LogitNormal

model = gaussian_model()
rng = np.random.default_rng(0)
noise = rng.standard_normal((3, 2000, 2, 2, 1)).astype("float32")  # first, then draws
samples = [
    model.generate(noise=noise, num_steps=3, sampler=sampler, verbose=0)
    for sampler in (claims.Gamma(0.0), "restart", claims.Gamma(1.0), claims.Gamma(0.5))
]
pushforward = model.generate(
    noise=noise[0], num_steps=3, sampler="pushforward", verbose=0
)
np.testing.assert_allclose(samples[0], pushforward, atol=2e-3)
np.testing.assert_allclose(samples[2], samples[1], atol=1e-5)
assert abs(samples[3].std() - 1.25) < 0.03  # the exact map keeps the distribution
assert abs(samples[3] - samples[1]).mean() > 0.1

# Factors of Eq. 13 with a = 1: -dlambda/dt is 2 / (t (1 - t)).
t = np.linspace(0.01, 0.99, 9)
elbo = 1 / (1 + np.exp(2 * np.log((1 - t) / t) - 4)) / (t * (1 - t))
for alpha, expected in ((False, elbo), (True, elbo * (1 - t))):
    found = claims.Factors(alpha)(model.schedule, 0 * t, t.astype("float32"))
    np.testing.assert_allclose(claims.ops.convert_to_numpy(found), expected, rtol=1e-5)
"""


def test_gamma_is_between_pushforward_and_restart():
    code = PIECES_OF_CLAIMS.format(tests=str(ROOT / "tests"))
    result = run_code(code, "benchmarks")
    assert result.returncode == 0, result.stderr


GAPS = """
import claims, keras, keras_imm
import numpy as np
from keras import ops

network = keras_imm.flow_map.FlowMap(
    keras_imm.backbones.DiT((8, 8, 1), hidden_size=16, depth=1, num_heads=2)
)
objective = claims.ShrinkingGap(0.1, 0.001, time_mapping=claims.EtaDecrement(k=20))
gaps = []
for progress in (0.0, 0.5, 1.0):
    p = objective.draw(
        keras_imm.flow_map.Network(network), ops.ones((64, 8, 8, 1)), None,
        keras.random.SeedGenerator(0), ops.convert_to_tensor(progress, "float32"),
    )
    gap = ops.convert_to_numpy(p.t - p.r)
    gaps.append(gap[ops.convert_to_numpy(p.t - p.s) > 0.1].min())
np.testing.assert_allclose(gaps, [0.1, 0.01, 0.001], rtol=1e-3)
"""


def test_a_gap_that_shrinks():
    result = run_code(GAPS, "benchmarks")
    assert result.returncode == 0, result.stderr


ALIKE = """
import json, sys
import objectives as benchmark

trained = []
def child(one):
    trained.append([one["name"], one["steps"]])
    return {**one, "training_steps": one.pop("steps"), "backend": "jax",
            "results": [{"steps": 1, "frechet": 1.0}]}
benchmark.child = child
benchmark.keras.backend.backend = lambda: "jax"
for budget, samples in (("steps", ""), ("passes", ""), ("passes", ""), ("time", "x")):
    benchmark.FLAGS(["x", "--name=IMM, as published", "--name=MeanFlow",
                     f"--samples={samples}", f"--budget={budget}",
                     "--out=" + sys.argv[1]])
    benchmark.main(None)
print(json.dumps(trained))
"""


def test_a_run_that_two_budgets_share_is_trained_once(tmp_path):
    path = tmp_path / "objectives.json"
    costs = {"jax": {"IMM, as published": 2.0, "MeanFlow": 2.5}}
    path.write_text(json.dumps({"costs": costs, "runs": []}))
    result = run_code(
        f"import sys\nsys.argv = ['x', {str(path)!r}]\n" + ALIKE, "benchmarks"
    )
    assert result.returncode == 0, result.stderr
    published, mean_flow = "IMM, as published", "MeanFlow"
    trained = json.loads(result.stdout.splitlines()[-1])
    assert trained[:3] == [[published, 4000], [mean_flow, 4000], [mean_flow, 3200]]
    assert trained[3:] == [[published, 4000], [mean_flow, 3200]]  # with samples
    runs = json.loads(path.read_text())["runs"]
    assert [run["budget"] for run in runs] == ["steps"] * 2 + ["passes"] * 2 + [
        "time"
    ] * 2


def test_costs_of_a_step():
    code = """
import json
import objectives as benchmark
benchmark.BATCH = 2
benchmark.FLAGS(["x"])
names = ["flow matching", "MeanFlow"]
print(json.dumps(benchmark.costs_of(names, rounds=2, epoch=1)))
"""
    result = run_code(code, "benchmarks")
    assert result.returncode == 0, result.stderr
    cost = json.loads(result.stdout.splitlines()[-1])
    assert list(cost) == ["flow matching", "MeanFlow"]
    assert all(taken > 0 for taken in cost.values())


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
import {benchmark} as benchmark
import budgets, keras
benchmark.FLAGS(["x"])
data = budgets.Data("digits")
if {benchmark!r} == "objectives":
    runs = [(name, None) for name in benchmark.CONFIGURATIONS]
    runs += [(name, trial) for name, all in benchmark.TRIALS.items() for trial in all]
    models = (benchmark.build(data, *run, 0, 8) for run in runs)
else:
    runs = [(c, v) for c in benchmark.CLAIMS for v in benchmark.CLAIMS[c]]
    models = (benchmark.build(data, benchmark.setting_of(*run), 0) for run in runs)
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


def test_the_margin_of_clothes_is_not_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    import budgets

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (20, 28, 28), "uint8"), np.arange(20) % 10
    measured = []

    class Quality:
        reference = None

        def labels(self, count):
            return images[1][:count]

        def frechet(self, samples):
            measured.append(samples)
            return 1.0

        def agreement(self, samples, labels):
            return 1.0

    monkeypatch.setattr(keras_imm.datasets, "fashion_mnist", lambda split: images)
    monkeypatch.setattr(keras_imm.metrics, "FashionMNISTQuality", Quality)
    for name, side in (("fashion_mnist", 28), ("fashion_mnist_32", 32)):
        data = budgets.Data(name)
        padded, _ = data.arrays
        assert padded.shape == (20, side, side, 1)
        assert data.backbone().image_shape == (side, side, 1)
        data.measure(padded, neighbours=False)
        np.testing.assert_allclose(measured[-1][..., 0], images[0], atol=1e-3)
    black = padded[0, 0, 0, 0]  # what was 0
    assert np.all(padded[:, :2] == black) and np.all(padded[:, :, -2:] == black)
