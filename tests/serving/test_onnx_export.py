"""ONNX files in their own runtime, against `generate` and the SavedModel."""

import keras
import numpy as np
import pytest
from long_tests import long
from served_models import GUIDANCE, LABELS, SEEDS, WIDE, rows, trained_model
from small_dit import small_dit

import keras_imm
from keras_imm.samplers import SamplingPlan
from keras_imm.serving import export_onnx, from_noise, onnx_export

same_everywhere = pytest.mark.one_backend("what is written is the same on all backends")


def run(path, **feed):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    assert [one.name for one in session.get_inputs()] == list(feed)
    for port in (*session.get_inputs(), *session.get_outputs()):
        assert port.shape[0] == "batch"
    (found,) = session.run(["image"], feed)
    return found


@pytest.mark.slow("an export")
def test_onnx_equals_generate_for_any_number_of_rows(model, tmp_path):
    path = export_onnx(model, tmp_path / "model.onnx", 2, guidance_scale=GUIDANCE)
    for count in (1, 7, 64):
        noise, label = rows(count)
        scale = np.full(count, GUIDANCE, "float32")
        found = run(path, noise=noise, label=label, guidance_scale=scale)
        expected = model.generate(
            label, noise=noise, guidance_scale=GUIDANCE, num_steps=2, verbose=0
        )
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow("exports")
@same_everywhere
@pytest.mark.parametrize(
    "options",
    [
        {
            **{"sampler": "heun", "time_grid": "edm", "num_steps": 3},
            **{"guidance_interval": (0.3, 0.7), "guidance_scale": 3.0},
        },
        *long("a loop, too", {"time_grid": [1.4, 0.5]}),
    ],
)
def test_samplers_intervals_and_grids(model, tmp_path, options):
    path = export_onnx(model, tmp_path / "model.onnx", **options)
    noise, label = rows(7)
    feed = {"noise": noise, "label": label}
    if "guidance_scale" in options:
        feed["guidance_scale"] = np.full(7, options["guidance_scale"], "float32")
    expected = model.generate(label, noise=noise, verbose=0, **options)
    np.testing.assert_allclose(run(path, **feed), expected, atol=1e-3)
    content = path.read_bytes()
    for word in (b"stack_trace", b"keras_imm", b".py"):  # of the traced source code
        assert word not in content


@same_everywhere
def test_none_is_the_models_own(tmp_path):
    model = trained_model()
    for plan, arguments in (
        ({"num_steps": 3, "time_grid": "edm", "guidance_scale": 3.0}, {}),
        ({"time_grid": [1.4], "guidance_scale": 3.0}, {"num_steps": 4}),
        ({"num_steps": 1, "guidance_scale": 3.0}, {"time_grid": [2.0, 1.4]}),
    ):
        model.sampling_plan = SamplingPlan(**plan)
        given = {"num_steps": None, "weights": "ema"} | arguments
        export = from_noise.export_of(model, **given)
        noise, label = rows(3)
        scale = keras.ops.full((3,), 3.0)
        found = from_noise.sampler_of(export.flow, export.settings)(
            export.values, keras.ops.convert_to_tensor(noise), label, scale
        )
        expected = model.generate(label, noise=noise, verbose=0, **arguments)
        found = keras.ops.convert_to_numpy(keras.ops.stop_gradient(found))
        np.testing.assert_allclose(found, expected, atol=1e-4)
    model.sampling_plan = SamplingPlan(sampler="restart")
    with pytest.raises(ValueError, match=r"`sampler` must take no noise.*Restart"):
        export_onnx(model, tmp_path / "model.onnx")


# -- Seeds


def noise_graph(function, path):
    """A function of seeds as an ONNX file."""
    import onnx_ir
    import torch

    from keras_imm.backend.torch.precision import older_name_agrees
    from keras_imm.serving import onnx_graph

    class Module(torch.nn.Module):
        def forward(self, seed):
            return function(seed)

    seeds = torch.tensor([1, 2, 3])
    batch = ({0: torch.export.Dim("batch", min=1, max=2**20)},)
    with older_name_agrees():
        program = torch.export.export(Module(), (seeds,), dynamic_shapes=batch)
    inputs = [from_noise.Input("seed", (), "int64")]
    onnx_ir.save(onnx_graph.graph_of(program, inputs, [1], "float32"), path)
    return path


@same_everywhere
def test_random_words_and_normals_are_those_of_the_saved_model(tmp_path):
    import tensorflow as tf

    from keras_imm.serving import row_noise, torch_seeds

    seeds = np.array([*SEEDS, 0, -1, -(2**63), 2**32 - 1, 123456789012345])
    key = np.stack([seeds & 0xFFFFFFFF, seeds >> 32 & 0xFFFFFFFF])[..., None]
    counter = np.zeros((4, len(seeds), 16))
    counter[0], counter[2] = np.arange(16), 5
    key, counter = (tf.constant(a, tf.uint32) for a in (key, counter))
    words = np.stack(row_noise.philox(tuple(key), tuple(counter)), -1)
    path = noise_graph(lambda s: torch_seeds.row_words(s, 16, 5), tmp_path / "w.onnx")
    np.testing.assert_array_equal(run(path, seed=seeds), words)
    path = noise_graph(lambda s: torch_seeds.row_normal(s, 63, 5), tmp_path / "n.onnx")
    normals = row_noise.row_normal(tf.constant(seeds), 63, 5)
    np.testing.assert_allclose(run(path, seed=seeds), normals, atol=1e-6)


@pytest.mark.slow("exports")
@same_everywhere
def test_seeds_give_the_saved_models_images(model, exported, tmp_path):
    import tensorflow as tf

    options = {"guidance_scale": GUIDANCE, "value_range": WIDE, "inputs": "seeds"}
    path = export_onnx(model, tmp_path / "model.onnx", (2, 1), **options)
    scale = np.linspace(0.5, 3.0, 7).astype("float32")
    feed = {"seed": SEEDS, "label": LABELS, "guidance_scale": scale}
    served = tf.saved_model.load(str(exported)).signatures
    images = {}
    for steps in (1, 2):
        tensors = {name: tf.constant(value) for name, value in feed.items()}
        images[steps] = served[f"generate_{steps}_steps"](**tensors)["image"].numpy()
        found = run(path, **feed, num_steps=np.full(7, steps, "int32"))
        assert found.dtype == np.uint8
        np.testing.assert_allclose(found.astype(int), images[steps], atol=1)
        assert np.mean(found == images[steps]) > 0.99
    asked = np.array([1, 2, 1, 0, 3, 2, -5], "int32")
    found = run(path, **feed, num_steps=asked)
    for i, steps in enumerate([1, 2, 1, 1, 2, 2, 1]):
        np.testing.assert_allclose(found[i].astype(int), images[steps][i], atol=1)
    assert np.mean(images[1] == images[2]) < 0.5


@pytest.mark.slow("an export")
@same_everywhere
def test_seeds_draw_what_restart_takes_later(tmp_path):
    import tensorflow as tf

    from keras_imm.serving import row_noise

    model = trained_model(num_classes=0)
    path = export_onnx(
        model, tmp_path / "m", 3, sampler="restart", inputs="seeds", value_range=WIDE
    )
    draws = [row_noise.row_normal(tf.constant(SEEDS), 16, i) for i in range(3)]
    noise = np.stack(draws).reshape(3, 7, 4, 4, 1)
    x = model.generate(noise=noise, sampler="restart", num_steps=3, verbose=0)
    low, high = WIDE
    expected = np.clip((x - low) * (255.0 / (high - low)) + 0.5, 0.0, 255.0)
    found = run(path, seed=SEEDS).astype(int)
    np.testing.assert_allclose(found, expected.astype(int), atol=1)


# -- Types, sizes and folders


@pytest.mark.slow("exports")
@same_everywhere
def test_float16_in_a_folder_that_is_replaced_and_of_half_the_size(model, tmp_path):
    path = export_onnx(model, tmp_path / "m", 2)
    assert path == tmp_path / "m" / "model.onnx"
    assert sorted(p.name for p in path.parent.iterdir()) == list(onnx_export.FILES)
    noise, label = rows(7)
    expected = model.generate(label, noise=noise, num_steps=2, verbose=0)
    found = run(path, noise=noise, label=label)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    data = path.with_name(onnx_export.FILES[1])
    whole = data.stat().st_size
    assert export_onnx(model, tmp_path / "m", 2, dtype="float16") == path
    assert data.stat().st_size < 0.6 * whole
    found = run(path, noise=noise, label=label)
    assert found.dtype == np.float32
    error = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
    assert 1e-6 < error < 2e-3  # rounded, and no worse than that
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"where there is 'notes\.txt'"):
        export_onnx(model, tmp_path / "m", 2)


@pytest.mark.slow("an export")
@same_everywhere
@pytest.mark.parametrize("policy", ["mixed_bfloat16"])
def test_models_of_half_precision_compute_in_float32(tmp_path, policy):
    model = keras_imm.IMM(small_dit())
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    half = keras_imm.IMM(small_dit(dtype=policy))
    half.set_weights(model.get_weights())
    noise, label = rows(7)
    expected = model.generate(label, noise=noise, num_steps=1, verbose=0)
    found = run(export_onnx(half, tmp_path / "m.onnx", 1), noise=noise, label=label)
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert {layer.compute_dtype for layer in half.backbone.layers} & {"bfloat16"}


def test_weights_that_no_file_holds(model, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_LARGEST", 1000)
    with pytest.raises(ValueError, match=r"`path` must be a folder, .* 2 GB"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@same_everywhere
def test_weights_that_float16_does_not_hold(tmp_path):
    model = keras_imm.IMM(small_dit(num_classes=0))
    model.backbone.weights[0].assign(model.backbone.weights[0] + 7e4)
    with pytest.raises(ValueError, match=r"`dtype` must be one that holds.*65504"):
        export_onnx(model, tmp_path / "m.onnx", 1, dtype="float16")
    assert not list(tmp_path.iterdir())


# -- Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must be an integer"),
        ({"num_steps": (1, 2)}, "`num_steps` must be an integer"),
        ({"num_steps": (1, 1), "inputs": "seeds"}, "`num_steps` must be one or more"),
        ({"num_steps": (), "inputs": "seeds"}, "`num_steps` must be one or more"),
        ({"time_grid": [1.4], "num_steps": 3}, "makes 2 steps.*num_steps=3"),
        ({"sampler": "restart"}, "`sampler` must take no noise.*'restart'"),
        ({"sampler": "ddim"}, "`sampler` must be one of"),
        ({"weights": "average"}, "`weights` must"),
        ({"guidance_interval": (0.1, 0.9)}, "limits a `guidance_scale`"),
        ({"inputs": "seed"}, "`inputs` must be one of"),
        ({"dtype": "bfloat16"}, "`dtype` must be one of"),
        ({"value_range": (-1, 1)}, "`value_range` is that of bytes"),
        ({"value_range": (1, -1), "inputs": "seeds"}, "`value_range` must be a pair"),
    ],
)
def test_arguments(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_onnx(model, tmp_path / "folder" / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_policies_that_no_graph_computes_in(tmp_path):
    model = keras_imm.IMM(small_dit(num_classes=0, dtype="float64"))
    with pytest.raises(ValueError, match="`model` must have layers of the policies"):
        export_onnx(model, tmp_path / "m.onnx", 1)


@pytest.mark.one_backend("reads policies")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_quantized_models(tmp_path, dtype):
    model = keras_imm.IMM(small_dit(num_classes=0))
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"policies.*one of 'int8_from_float32'"):
        export_onnx(model, tmp_path / "m.onnx", 1, dtype=dtype)


def test_what_is_missing_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"keras_imm\[onnx\]"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["model.onnx", "model"])
def test_a_failed_export_leaves_what_was_there(model, tmp_path, monkeypatch, name):
    def fail(*arguments, **options):
        raise RuntimeError("no room")

    monkeypatch.setattr(from_noise.Export, "write", fail)
    before = tmp_path / name
    if name == "model":
        before.mkdir()
        before = before / "model.onnx"
    before.write_text("before")
    with pytest.raises(RuntimeError, match="no room"):
        export_onnx(model, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert before.read_text() == "before"
