"""Flow maps and samples against the outputs of the published networks."""

import json
import pathlib

import keras
import numpy as np
import pytest

from keras_imm import samplers
from keras_imm.checkpoints.official import build_model
from keras_imm.checkpoints.published_weights import assign_published_weights

GOLDEN = sorted((pathlib.Path(__file__).parent / "data/golden").glob("*.npz"))
GUIDANCE = 1.5
# Of the network's output and the flow map, and of samples.
TOLERANCES = {"DiT": (1e-5, 1e-5), "SongUNet": (3e-5, 1e-4)}


def channels_last(x):
    return np.moveaxis(x, -3, -1)


def load(path, policy=None):
    """The file's arrays and an IMM with its settings and weights."""
    arrays = dict(np.load(path))
    prefix = "weight/"
    weights = {
        name.removeprefix(prefix): value
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    arguments = json.loads(str(arrays["config_json"]))
    model = build_model(arguments, weights, dtype=policy)
    assign_published_weights(model.backbone, weights)
    arrays["tolerance"], arrays["sample_tolerance"] = TOLERANCES[
        arguments["model_type"]
    ]
    return arrays, model


def labels_of(arrays, model):
    return arrays["labels"] if model.num_classes else None


def guidance_of(model):
    return GUIDANCE if model.num_classes else None


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    return load(request.param)


@pytest.fixture
def conditional(golden):
    """The golden networks that take labels."""
    if not golden[1].num_classes:
        pytest.skip("this network has no labels to be guided by")
    return golden


def test_there_are_six_golden_files():
    assert len(GOLDEN) == 6


def test_network_output(golden):
    arrays, model = golden
    x, t, s = channels_last(arrays["x"]), arrays["t"], arrays["s"]
    alpha, sigma = (
        (np.cos(np.pi * t / 2), np.sin(np.pi * t / 2))
        if type(model.schedule).__name__ == "Cosine"
        else (1 - t, t)
    )
    scaled = x / (0.5 * np.sqrt(alpha**2 + sigma**2))[:, None, None, None]
    second = t - s if model.second_time == "stride" else s
    inputs = [scaled, model.time_scale * t, model.time_scale * second]
    inputs = [value.astype("float32") for value in inputs]
    if model.num_classes:
        inputs.append(arrays["labels"])
    g = model.backbone(inputs)
    g = keras.ops.convert_to_numpy(keras.ops.stop_gradient(g))
    expected = channels_last(arrays["network_output"])
    np.testing.assert_allclose(g, expected, atol=arrays["tolerance"])


def test_flow_map(golden):
    arrays, model = golden
    x, t, s = channels_last(arrays["x"]), arrays["t"], arrays["s"]
    labels = labels_of(arrays, model)
    out = model.flow_map(x, t.astype("float32"), s.astype("float32"), labels)
    out = keras.ops.convert_to_numpy(out)
    expected = channels_last(arrays["flow_map"])
    np.testing.assert_allclose(out, expected, atol=arrays["tolerance"])


def test_call_is_the_flow_map_with_raw_weights(conditional):
    arrays, model = conditional
    x = channels_last(arrays["x"])
    t, s = float(arrays["cfg_t"]), float(arrays["cfg_s"])
    out = model(x, t, s, labels=arrays["labels"], guidance_scale=arrays["cfg_scale"])
    out = keras.ops.convert_to_numpy(keras.ops.stop_gradient(out))
    np.testing.assert_allclose(out, channels_last(arrays["flow_map_cfg"]), atol=1e-5)


def test_unconditional_flow_map(conditional):
    arrays, model = conditional
    x, t, s = channels_last(arrays["x"]), arrays["t"], arrays["s"]
    out = model.flow_map(x, t.astype("float32"), s.astype("float32"))
    out = keras.ops.convert_to_numpy(out)
    expected = channels_last(arrays["flow_map_unconditional"])
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_guided_flow_map(conditional):
    arrays, model = conditional
    out = model.flow_map(
        channels_last(arrays["x"]),
        float(arrays["cfg_t"]),
        float(arrays["cfg_s"]),
        arrays["labels"],
        guidance_scale=float(arrays["cfg_scale"]),
    )
    out = keras.ops.convert_to_numpy(out)
    np.testing.assert_allclose(out, channels_last(arrays["flow_map_cfg"]), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "num_steps", "time_grid"),
    [
        ("uniform_1", 1, "uniform"),
        ("uniform_2", 2, "uniform"),
        ("uniform_4", 4, "uniform"),
        ("uniform_8", 8, "uniform"),
        ("edm_4", 4, "edm"),
        ("eta_1.4", 2, [1.4]),
    ],
)
def test_pushforward(golden, name, num_steps, time_grid):
    arrays, model = golden
    times = samplers.time_grid(
        time_grid, num_steps, model.schedule, model.min_time, model.max_time
    )
    np.testing.assert_allclose(times, arrays[f"times_{name}"], atol=1e-6)
    images = model.generate(
        labels=labels_of(arrays, model),
        num_samples=4,
        num_steps=num_steps,
        guidance_scale=guidance_of(model),
        time_grid=time_grid,
        noise=channels_last(arrays["latents"]) / model.sigma_data,
    )
    expected = channels_last(arrays[f"pushforward_{name}"])
    np.testing.assert_allclose(images, expected, atol=arrays["sample_tolerance"])


@pytest.mark.slow("trains or builds for seconds")
def test_restart(golden):
    arrays, model = golden
    times = samplers.time_grid(
        "uniform", 3, model.schedule, model.min_time, model.max_time
    )
    np.testing.assert_allclose(times[:-1], arrays["times_restart_uniform_3"], atol=1e-6)
    draws = [arrays["latents"], *arrays["restart_noise"][:2]]
    images = model.generate(
        labels=labels_of(arrays, model),
        num_steps=3,
        guidance_scale=guidance_of(model),
        sampler="restart",
        noise=channels_last(np.stack(draws)) / model.sigma_data,
    )
    expected = channels_last(arrays["restart_uniform_3"])
    np.testing.assert_allclose(images, expected, atol=arrays["sample_tolerance"])


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize(
    ("policy", "tolerance"), [("mixed_bfloat16", 3e-2), ("mixed_float16", 3e-3)]
)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_half_precision(path, policy, tolerance):
    if policy == "mixed_float16" and keras.backend.backend() == "jax":
        pytest.skip("JAX has no float16 attention on the CPU")
    # Times near 1000 in half precision would be wrong by up to 4 (bfloat16).
    arrays, model = load(path, policy)
    x, t, s = channels_last(arrays["x"]), arrays["t"], arrays["s"]
    labels = labels_of(arrays, model)
    out = model.flow_map(x, t.astype("float32"), s.astype("float32"), labels)
    out = keras.ops.convert_to_numpy(out)
    assert keras.backend.standardize_dtype(out.dtype) == "float32"
    expected = channels_last(arrays["flow_map"])
    np.testing.assert_allclose(out, expected, atol=tolerance)
