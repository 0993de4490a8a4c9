"""ONNX files in their own runtime, against `generate`."""

import numpy as np
import pytest
from served_models import GUIDANCE, on_tensorflow, rows, trained_model

from keras_imm.samplers import SamplingPlan
from keras_imm.serving import export_onnx


def test_onnx_equals_generate_for_any_number_of_rows(model, tmp_path):
    import onnxruntime

    path = export_onnx(model, tmp_path / "model.onnx", 2, guidance_scale=GUIDANCE)
    session = onnxruntime.InferenceSession(path)
    for count in (1, 7, 64):
        noise, label = rows(count)
        scale = np.full(count, GUIDANCE, "float32")
        feed = {"noise": noise, "label": label, "guidance_scale": scale}
        (found,) = session.run(None, feed)
        expected = model.generate(
            label, noise=noise, guidance_scale=GUIDANCE, verbose=0
        )
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@on_tensorflow
@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "heun", "time_grid": "edm", "guidance_interval": (0.3, 0.7)},
        {"guidance_interval": (0.3, 0.7)},
    ],
)
def test_samplers_and_intervals(model, tmp_path, options):
    import onnxruntime

    scale = 3.0 if "guidance_interval" in options else None
    options = options | {"guidance_scale": scale, "num_steps": 4}
    path = export_onnx(model, tmp_path / "model.onnx", **options)
    session = onnxruntime.InferenceSession(path)
    for count in (1, 7):
        noise, label = rows(count)
        feed = {"noise": noise, "label": label}
        if scale:
            feed["guidance_scale"] = np.full(count, scale, "float32")
        (found,) = session.run(None, feed)
        expected = model.generate(label, noise=noise, verbose=0, **options)
        np.testing.assert_allclose(found, expected, atol=1e-3)


@on_tensorflow
@pytest.mark.slow("three exports")
def test_none_is_the_models_own(tmp_path):
    import onnxruntime

    model = trained_model()
    noise, label = rows(3)
    feed = {"noise": noise, "label": label}
    for plan, arguments in (
        ({"num_steps": 3, "time_grid": "edm", "guidance_scale": 3.0}, {}),
        ({"time_grid": [1.4], "guidance_scale": 3.0}, {"num_steps": 4}),
        ({"num_steps": 1, "guidance_scale": 3.0}, {"time_grid": [2.0, 1.4]}),
    ):
        model.sampling_plan = SamplingPlan(**plan)
        path = export_onnx(model, tmp_path / "model.onnx", **arguments)
        session = onnxruntime.InferenceSession(path)
        (found,) = session.run(None, feed | {"guidance_scale": np.full(3, 3.0, "f4")})
        expected = model.generate(label, noise=noise, verbose=0, **arguments)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    model.sampling_plan = SamplingPlan(sampler="restart")
    with pytest.raises(ValueError, match=r"`sampler` must take no noise.*Restart"):
        export_onnx(model, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be an integer"),
        ({"num_steps": (1, 2)}, "`num_steps` must be an integer"),
        ({"time_grid": [1.4], "num_steps": 3}, "makes 2 steps.*num_steps=3"),
        ({"sampler": "restart"}, "`sampler` must take no noise.*'restart'"),
        ({"sampler": "ddim"}, "`sampler` must be one of"),
        ({"weights": "average"}, "`weights` must"),
        ({"guidance_interval": (0.1, 0.9)}, "limits a `guidance_scale`"),
    ],
)
def test_arguments(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / "folder" / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []
