"""Flow maps and samples against the outputs of the published networks."""

import json
import pathlib

import keras
import numpy as np
import pytest

import keras_imm
from keras_imm import samplers
from keras_imm.checkpoints.published_weights import assign_dit

GOLDEN = sorted((pathlib.Path(__file__).parent / "data/golden").glob("dit_*.npz"))
SCHEDULES = {"fm": "flow_matching", "vp_cosine": "cosine"}
SECOND_TIMES = {"identity": "s", "stride": "stride"}
GUIDANCE = 1.5


def channels_last(x):
    return np.moveaxis(x, -3, -1)


def load(path, policy=None):
    """The file's arrays and an IMM with its settings and weights."""
    arrays = dict(np.load(path))
    config = json.loads(str(arrays["config_json"]))
    side, channels = config["img_resolution"], config["img_channels"]
    backbone = keras_imm.backbones.DiT(
        image_shape=(side, side, channels),
        patch_size=config["patch_size"],
        hidden_size=config["hidden_size"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        num_classes=config["num_classes"],
        dtype=policy,
    )
    model = keras_imm.IMM(
        backbone,
        schedule=SCHEDULES[config["noise_schedule"]],
        parameterization=config["f_type"],
        second_time=SECOND_TIMES[config["temb_type"]],
        time_scale=config["time_scale"],
        sigma_data=config["sigma_data"],
        min_time=config["eps"],
        max_time=config["T"],
    )
    prefix = "weight/"
    assign_dit(
        backbone,
        {
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        },
    )
    return arrays, model


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    return load(request.param)


def test_there_are_four_golden_files():
    assert len(GOLDEN) == 4


def test_flow_map(golden):
    arrays, model = golden
    x, t, s = channels_last(arrays["x"]), arrays["t"], arrays["s"]
    out = model.flow_map(x, t.astype("float32"), s.astype("float32"), arrays["labels"])
    np.testing.assert_allclose(out, channels_last(arrays["flow_map"]), atol=1e-5)


def test_call_is_the_flow_map_with_raw_weights(golden):
    arrays, model = golden
    x = channels_last(arrays["x"])
    t, s = float(arrays["cfg_t"]), float(arrays["cfg_s"])
    out = model(x, t, s, labels=arrays["labels"], guidance_scale=arrays["cfg_scale"])
    out = keras.ops.convert_to_numpy(keras.ops.stop_gradient(out))
    np.testing.assert_allclose(out, channels_last(arrays["flow_map_cfg"]), atol=1e-5)


def test_unconditional_flow_map(golden):
    arrays, model = golden
    x, t, s = channels_last(arrays["x"]), arrays["t"], arrays["s"]
    out = model.flow_map(x, t.astype("float32"), s.astype("float32"))
    expected = channels_last(arrays["flow_map_unconditional"])
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_guided_flow_map(golden):
    arrays, model = golden
    out = model.flow_map(
        channels_last(arrays["x"]),
        float(arrays["cfg_t"]),
        float(arrays["cfg_s"]),
        arrays["labels"],
        guidance_scale=float(arrays["cfg_scale"]),
    )
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
        labels=arrays["labels"],
        num_steps=num_steps,
        guidance_scale=GUIDANCE,
        time_grid=time_grid,
        noise=channels_last(arrays["latents"]) / model.sigma_data,
    )
    expected = channels_last(arrays[f"pushforward_{name}"])
    np.testing.assert_allclose(images, expected, atol=1e-5)


def test_restart(golden):
    arrays, model = golden
    noise = channels_last(arrays["restart_noise"]).astype("float32")
    images = samplers.restart(
        lambda x, t, s: model.flow_map(x, t, s, arrays["labels"], GUIDANCE),
        channels_last(arrays["latents"]),
        np.append(arrays["times_restart_uniform_3"], model.min_time),
        model.schedule,
        lambda i: keras.ops.convert_to_tensor(noise[i]),
    )
    expected = channels_last(arrays["restart_uniform_3"])
    np.testing.assert_allclose(images, expected, atol=1e-5)


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
    out = model.flow_map(x, t.astype("float32"), s.astype("float32"), arrays["labels"])
    assert keras.backend.standardize_dtype(out.dtype) == "float32"
    expected = channels_last(arrays["flow_map"])
    np.testing.assert_allclose(out, expected, atol=tolerance)
