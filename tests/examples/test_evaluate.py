"""Evaluation: the same images however the work is split, killed and started again."""

import json
import os
import signal
import sys
import time

import keras
import numpy as np
import pytest
from fork_server import ForkServer
from scripts import ON_THE_CPU, ROOT, run_code
from small_dit import small_dit
from xla_flags import xla_flags

import keras_imm
from keras_imm.callbacks import pixels_to_uint8
from keras_imm.metrics import ReferenceStatistics, frechet_distance

pytestmark = pytest.mark.any_backend("its metrics are NumPy")

SHAPE = (8, 8, 3)
COMMON = (
    *("--steps=1,2", "--guidance=1.5", "--num_images=40", "--batch_size=16"),
    *("--save_every=0", "--save_samples"),
)


@pytest.fixture(scope="module")
def evaluation():
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import evaluation
    finally:
        sys.path.pop(0)
    return evaluation


def random_model(**options):
    model = keras_imm.IMM(small_dit(image_shape=SHAPE, **options))
    rng = np.random.default_rng(7)
    for variable in model.trainable_variables:
        variable.assign(0.2 * rng.standard_normal(variable.shape).astype("float32"))
    return model


@pytest.fixture(scope="module")
def model():
    return random_model()


def pooled(images):
    return images.mean((1, 2), dtype="float64")


@pytest.fixture
def reference():
    features = 100 + 50 * np.random.default_rng(1).normal(size=(30, 3))
    covariance = np.cov(features, rowvar=False)
    return ReferenceStatistics(features.mean(0), covariance, features=features)


# -- Images


def test_noise_and_label_depend_on_seed_and_number_alone(evaluation, model):
    images = evaluation.Images(model, pixels_to_uint8, seed=3)
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((3, 7))))
    labels, noise = images.draws([7])
    assert labels[0] == rng.integers(3)
    expected = rng.standard_normal((1, *SHAPE), "float32")
    np.testing.assert_array_equal(noise[:, 0], expected)
    assert images.labels([7])[0] == labels[0]
    other = evaluation.Images(model, pixels_to_uint8, seed=4)
    assert not np.any(other.draws([7])[1] == noise)
    assert not np.any(images.draws([8])[1] == noise)


def test_labels_are_uniform_and_noise_is_normal(evaluation, model):
    images = evaluation.Images(model, pixels_to_uint8)
    counts = np.bincount(images.labels(range(3000)))
    # Binomial(3000, 1/3): five standard deviations are 129.
    assert len(counts) == 3 and np.abs(counts - 1000).max() < 129
    noise = images.draws(range(200))[1]
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert noise.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sampler", sorted(keras_imm.samplers.SAMPLERS))
def test_batches_change_an_image_by_one_level_at_most(evaluation, model, sampler):
    images = evaluation.Images(model, pixels_to_uint8, sampler=sampler)
    setting = evaluation.Setting(3, 2.0)
    whole = images.generate(np.arange(10), setting).astype(int)
    parts = [images.generate([i, 9, 1], setting)[:1] for i in range(10)]
    assert np.abs(whole - np.concatenate(parts)).max() <= 1
    assert np.abs(whole[0] - whole[1]).max() > 1


@pytest.mark.parametrize(
    ("scale", "grid", "steps"),
    [(None, "uniform", 2), (1.0, "edm", 3), (2.0, [1.4], 2), (2.0, [1.4], 1)],
)
def test_images_are_those_of_the_model(evaluation, model, scale, grid, steps):
    images = evaluation.Images(model, pixels_to_uint8, time_grid=grid)
    labels, noise = images.draws(range(5))
    expected = model.generate(
        labels=labels,
        noise=noise[0],
        num_steps=steps,
        guidance_scale=scale,
        time_grid="uniform" if steps == 1 else grid,
    )
    found = images.generate(range(5), evaluation.Setting(steps, scale))
    assert np.abs(found.astype(int) - pixels_to_uint8(expected)).max() <= 1


def test_restart_adds_new_noise_at_each_step(evaluation, model):
    """Against a walk in NumPy, with noises that are not each other's."""
    images = evaluation.Images(model, pixels_to_uint8, sampler="restart")
    labels, noise = images.draws([0], 3)
    assert noise.shape == (3, 1, *SHAPE)
    assert np.abs(np.corrcoef(noise.reshape(3, -1)) - np.eye(3)).max() < 0.3
    times = np.linspace(model.max_time, model.min_time, 4)
    x = model.sigma_data * noise[0]
    for i, t in enumerate(times[:-1]):
        x = model.flow_map(x, float(t), model.min_time, labels=labels)
        x = keras.ops.convert_to_numpy(x)
        if i < 2:
            s = times[i + 1]
            x = ((1 - s) * x + s * model.sigma_data * noise[i + 1]).astype("float32")
    found = images.generate([0], evaluation.Setting(3, None))
    assert np.abs(found.astype(int) - pixels_to_uint8(x)).max() <= 1


def test_guidance_in_an_interval(evaluation, model):
    images = evaluation.Images(
        model, pixels_to_uint8, sampler="euler", guidance_interval=(0.3, 0.7)
    )
    labels, noise = images.draws(range(5))
    expected = model.generate(
        labels=labels,
        noise=noise[0],
        num_steps=4,
        sampler="euler",
        guidance_scale=3.0,
        guidance_interval=(0.3, 0.7),
    )
    found = images.generate(range(5), evaluation.Setting(4, 3.0)).astype(int)
    assert np.abs(found - pixels_to_uint8(expected)).max() <= 1
    everywhere = evaluation.Images(model, pixels_to_uint8, sampler="euler")
    other = everywhere.generate(range(5), evaluation.Setting(4, 3.0))
    assert np.abs(found - other).max() > 1
    # Without guidance, which 1 is, there is nothing to limit.
    for scale in (None, 1.0):
        assert images.plan(evaluation.Setting(4, scale)).guidance_interval is None


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="one process has several devices in JAX"
)
def test_four_devices_share_a_batch(evaluation, model, tmp_path):
    model.save(tmp_path / "model.keras")
    code = f"""
import keras, keras_imm, numpy as np, evaluation
from keras_imm.callbacks import pixels_to_uint8
keras_imm.distribution.initialize()
model = keras.saving.load_model({str(tmp_path / "model.keras")!r})
images = evaluation.Images(model, pixels_to_uint8)
rows = evaluation.for_any_batch(lambda x: {{"x": x[:, :1] * len(x)}})(np.ones((3, 2)))
assert np.array_equal(rows["x"], 4 * np.ones((3, 1))), rows
assert [keras_imm.metrics.feature_network._shared(n) for n in (3, 4, 5)] == [4, 4, 8]
setting = evaluation.Setting(2, 2.0)
plan = images.plan(setting).completed(model.objective)
x = np.zeros((8, 8, 8, 3), "float32")
for compiled in (True, False):
    generator = keras_imm.samplers.Generator(model.flow, compiled)
    given = keras.ops.convert_to_tensor(x), np.zeros(8, "int32")
    times = plan.times(model.flow)
    out = generator.sample(model.weights_for_sampling(), plan, times, *given)
    shards = out.addressable_shards
    assert [shard.data.shape[0] for shard in shards] == [2] * 4, shards
# What does not divide is computed whole.
assert images.generate(range(3), setting).shape == (3, 8, 8, 3)
found = images.generate(range(8), setting)
np.save({str(tmp_path / "found.npy")!r}, found)
"""
    four = xla_flags(devices=4)
    result = run_code(code, "examples", XLA_FLAGS=four, **ON_THE_CPU)
    assert result.returncode == 0, result.stderr
    images = evaluation.Images(model, pixels_to_uint8)
    expected = images.generate(range(8), evaluation.Setting(2, 2.0)).astype(int)
    assert np.abs(expected - np.load(tmp_path / "found.npy")).max() <= 1


def test_an_image_that_is_not_finite_stops_the_run(evaluation):
    broken = random_model()
    broken.weights[0].assign(np.full(broken.weights[0].shape, np.nan))
    images = evaluation.Images(broken, pixels_to_uint8)
    with pytest.raises(ValueError, match="Image 17 is not finite"):
        images.generate([17, 18], evaluation.Setting(1, None))


# -- One setting


@pytest.fixture
def evaluate(evaluation, model, reference, tmp_path):
    """Runs one setting in a folder of the test; returns what was found."""

    def run(folder, network=pooled, **options):
        images = evaluation.Images(model, pixels_to_uint8)
        path = tmp_path / folder
        one = evaluation.Evaluation(images, network, reference, path, 40, 7, **options)
        return one.run(evaluation.Setting(1, None))

    return run


def without_times(found):
    return {k: v for k, v in found.items() if k != "seconds_per_1000_images"}


def test_the_metrics_are_those_of_the_images(evaluation, model, reference, evaluate):
    images = evaluation.Images(model, pixels_to_uint8)
    images = images.generate(range(40), evaluation.Setting(1, None))
    found = evaluate("out")
    expected = frechet_distance(pooled(images), reference.features)
    assert found["frechet"] == pytest.approx(expected, rel=1e-2)
    assert {"kernel_distance", "precision", "coverage"} <= found.keys()
    assert "inception_score" not in found


def test_a_run_that_was_stopped_goes_on_exactly(evaluate):
    expected, calls = evaluate("whole"), 0

    def failing(images):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return pooled(images)

    with pytest.raises(KeyboardInterrupt):
        evaluate("stopped", failing, save_every=0)
    found = evaluate("stopped", failing, save_every=0)
    assert without_times(found) == without_times(expected)
    assert calls == 1 + 6  # 6 batches of up to 7 images
    evaluate("stopped", failing)
    assert calls == 7  # nothing is left to do


def test_processes_share_the_images(evaluate, tmp_path):
    sizes = []

    def counting(images):
        sizes.append(len(images))
        return pooled(images)

    assert evaluate("shared", counting, process=(1, 2), keep_images=False) is None
    assert len(sizes) == 3
    found = evaluate("shared", counting, process=(0, 2))
    assert len(sizes) == 6
    assert without_times(found) == pytest.approx(without_times(evaluate("alone")))
    assert [path.name for path in (tmp_path / "shared/steps1").iterdir()] == [
        "result.json"
    ]


# -- The script


@pytest.fixture(scope="module")
def files(tmp_path_factory, model):
    """A model, data, and a feature network with logits."""
    folder = tmp_path_factory.mktemp("files")
    model.save(folder / "model.keras")
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (30, *SHAPE), dtype=np.uint8)
    np.savez(folder / "data.npz", images=data)
    images = keras.Input(SHAPE, dtype="uint8")
    x = keras.layers.Rescaling(1 / 255)(images)
    features = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {"features": features, "logits": keras.layers.Dense(4)(features)}
    keras.Model(images, outputs).save(folder / "features.keras")
    return folder


@pytest.fixture(scope="module")
def script():
    server = ForkServer("examples/evaluate.py")
    yield server
    server.close()


def arguments(files, out, *flags):
    return (
        f"--checkpoint={files / 'model.keras'}",
        f"--reference={files / 'data.npz'}",
        f"--features={files / 'features.keras'}",
        f"--out={out}",
        *COMMON,
        *flags,
    )


def results(out):
    rows = json.loads((out / "metrics.json").read_text())["results"]
    return [without_times(row) for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(script, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "whole"
    start = time.perf_counter()
    status, output = script.run(*arguments(files, out))
    assert status == 0, output
    return out, output, time.perf_counter() - start


def test_what_the_script_leaves(uninterrupted, files, evaluation, model):
    out, output, _ = uninterrupted
    rows = results(out)
    assert [(row["steps"], row["guidance_scale"]) for row in rows] == [
        (1, 1.5),
        (2, 1.5),
    ]
    names = {"frechet", "inception_score", "kernel_distance", "recall", "density"}
    assert all(names <= row.keys() for row in rows)
    assert "40/40" in output and "recall" in output
    assert (out / "quality.png").read_bytes().startswith(b"\x89PNG")
    with np.load(out / "samples_steps2_w1.5.npz") as file:  # as ADM's
        samples, labels = file["arr_0"], file["arr_1"]
    assert samples.shape == (40, *SHAPE) and samples.dtype == np.uint8
    images = evaluation.Images(model, pixels_to_uint8)
    np.testing.assert_array_equal(labels, images.labels(range(40)))
    data = np.load(files / "data.npz")["images"]
    distance = frechet_distance(pooled(samples) / 255, pooled(data) / 255)
    assert rows[1]["frechet"] == pytest.approx(distance, rel=1e-5)


def test_a_killed_run_ends_with_the_same_metrics(
    script, files, uninterrupted, tmp_path
):
    out, _, seconds = uninterrupted
    rng = np.random.default_rng(os.getpid())
    for _ in range(2):
        run = script.start(*arguments(files, tmp_path / "killed"))
        time.sleep(rng.uniform(0.3, 0.9) * seconds)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
    status, output = script.run(*arguments(files, tmp_path / "killed"))
    assert status == 0, output
    assert results(tmp_path / "killed") == results(out)
    for name in ("samples_steps1_w1.5.npz", "samples_steps2_w1.5.npz"):
        with np.load(out / name) as a, np.load(tmp_path / "killed" / name) as b:
            np.testing.assert_array_equal(a["arr_0"], b["arr_0"])


def test_two_processes_share_the_work(script, files, uninterrupted, tmp_path):
    flags = [
        arguments(files, tmp_path, "--num_processes=2", f"--process_id={index}")
        for index in range(2)
    ]
    runs = [script.start(*of_process) for of_process in flags]
    for run in runs:
        assert run.wait() == 0, run.output
    for row, expected in zip(results(tmp_path), results(uninterrupted[0]), strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    name = "samples_steps2_w1.5.npz"
    with np.load(uninterrupted[0] / name) as a, np.load(tmp_path / name) as b:
        np.testing.assert_array_equal(a["arr_0"], b["arr_0"])


def test_another_seed_is_refused_with_both_values(script, files, uninterrupted):
    status, output = script.run(*arguments(files, uninterrupted[0], "--seed=5"))
    assert status != 0
    assert "--seed=0" in output and "--seed=5" in output


def test_settings_without_results_are_replaced(script, files, tmp_path):
    wrong = f"--reference={files / 'nowhere.npz'}"
    status, output = script.run(*arguments(files, tmp_path, wrong))
    assert status != 0 and "nowhere.npz" in output
    status, output = script.run(*arguments(files, tmp_path, "--steps=0"))
    assert status != 0 and "--steps" in output and "positive" in output
    for flag, message in (
        ("--guidance_interval=0.8,0.2", "`guidance_interval` must be a pair of rising"),
        ("--guidance_interval=0.8", "two numbers"),
        ("--time_grid=1,2", "must hold falling values of eta"),
    ):
        status, output = script.run(*arguments(files, tmp_path, "--steps=3", flag))
        assert status != 0 and message in output
    flags = ("--steps=1", "--sampler=euler", "--guidance_interval=0.2,1")
    status, output = script.run(*arguments(files, tmp_path, *flags))
    assert status == 0, output


def test_the_parts_of_the_script(files):
    code = f"""
import pathlib, sys
from unittest import mock
import numpy as np
import evaluate
from absl import app, flags

latent = mock.Mock(data_shape=(8, 8, 4), num_classes=0)
flags.FLAGS(["evaluate", "--checkpoint=c", "--reference=r", "--out=o"])
try:
    evaluate.sample_to_uint8(latent)
except app.UsageError as error:
    assert "--vae" in str(error)
else:
    raise AssertionError("latents need an autoencoder")

flags.FLAGS.vae = "sd-vae-ft-ema"
with mock.patch.object(
    evaluate.keras_imm.latents.StableDiffusionVAE, "from_diffusers"
) as load:
    decode = evaluate.sample_to_uint8(latent)
load.assert_called_once_with("sd-vae-ft-ema", batch_size=32)
assert decode is load.return_value.decode

pixels = np.arange(256, dtype="float32").reshape(1, 16, 16, 1) / 127.5 - 1
back = evaluate.reference_to_uint8(decode)(pixels)
assert np.array_equal(back.ravel(), np.arange(256))

blocks = evaluate.pooled(np.full((2, 17, 20, 3), 255, "uint8"))
assert blocks.shape == (2, 192) and np.all(blocks == 2)
assert evaluate.in_colour(np.zeros((2, 4, 4, 1))).shape == (2, 4, 4, 3)
assert not evaluate.is_statistics(pathlib.Path({str(files / "data.npz")!r}))
assert evaluate.is_statistics(pathlib.Path("img512.pkl"))

names = flags.FLAGS["sampler"].parser.enum_values
assert set(names) == set(evaluate.keras_imm.samplers.SAMPLERS), names
flags.FLAGS.time_grid = "1.4,0.5"
assert evaluate.time_grid() == [1.4, 0.5]
flags.FLAGS.guidance = ["1.5", "2"]
assert [s.name for s in evaluate.settings_to_measure()][:2] == [
    "steps1_w1.5", "steps1_w2"
]
"""
    result = run_code(code, "examples")
    assert result.returncode == 0, result.stderr
