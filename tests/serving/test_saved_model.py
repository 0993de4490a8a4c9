import base64
import io
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from small_dit import small_dit

import keras_imm
from keras_imm.serving import export_onnx, export_saved_model

PROCESS = pathlib.Path(__file__).with_name("only_tensorflow.py")
SIGNATURES = [
    *("flow_map", "generate_1_steps", "generate_2_steps", "generate_from_noise"),
    *("serving_default", "serving_png"),
]
NUM_CLASSES = 3
GUIDANCE = 1.5
WIDE = (-20.0, 20.0)  # what an untrained model makes
on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="what is written is the same on all backends, and exports take seconds",
)


def trained_model(num_classes=NUM_CLASSES):
    """A model whose averages differ from its weights."""
    model = keras_imm.IMM(small_dit(num_classes=num_classes))
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    model.compile(keras.optimizers.Adam(0.05, use_ema=True, ema_momentum=0.9))
    images = 0.5 * rng.standard_normal((32, 4, 4, 1)).astype("float32")
    labels = [np.arange(32) % num_classes] if num_classes else []
    model.fit(images, *labels, batch_size=8, epochs=2, verbose=0)
    return model


@pytest.fixture(scope="module")
def model():
    return trained_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "digits"
    return export_saved_model(
        model,
        folder,
        num_steps=(1, 2),
        guidance_scale=GUIDANCE,
        value_range=WIDE,
        warmup=True,
    )


def rows(count, seed=0):
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, 4, 4, 1)).astype("float32")
    return noise, rng.integers(0, NUM_CLASSES + 1, count).astype("int32")


SEEDS = np.array([1, 2**32 + 1, 1, -7, 2**63 - 1, 2**40, 1], "int64")
LABELS = np.array([0, 0, 0, 1, 2, 3, 1], "int32")


def requests():
    noise, label = rows(7)
    scale = np.linspace(0.5, 3.0, 7).astype("float32")
    seeds = {"seed": SEEDS, "label": LABELS}
    times = {"t": np.linspace(0.5, 0.9, 7), "s": np.linspace(0.0, 0.5, 7)}
    return {
        "serving_default": seeds,
        "serving_png": seeds,
        "generate_1_steps": seeds | {"guidance_scale": scale},
        "generate_2_steps": seeds | {"guidance_scale": np.full(7, 1.5, "float32")},
        "generate_from_noise": {
            **{"noise": noise, "label": label},
            "guidance_scale": np.full(7, GUIDANCE, "float32"),
        },
        "flow_map": {
            **{name: value.astype("float32") for name, value in times.items()},
            **{"x_t": noise, "label": label, "guidance_scale": scale},
        },
    }


@pytest.fixture(scope="module")
def answers(exported, tmp_path_factory):
    """What a process without Keras gets from both loaders."""
    folder = tmp_path_factory.mktemp("answers")
    arrays = {
        f"{signature}/{name}": value
        for signature, inputs in requests().items()
        for name, value in inputs.items()
    }
    np.savez(folder / "inputs.npz", **arrays)
    files = [exported, folder / "inputs.npz", folder / "outputs.npz"]
    result = subprocess.run(
        [sys.executable, PROCESS, *files],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    found = dict(np.load(folder / "outputs.npz", allow_pickle=False))
    return found | json.loads(str(found.pop("json")))


def test_the_layout_is_that_of_tf_serving(exported):
    assert exported.name == "1"
    names = {path.name for path in exported.parent.iterdir()}
    assert names == {"1", "models.config", "batching_parameters.txt"}
    assert (exported / "saved_model.pb").stat().st_size < 2_000_000
    config = (exported.parent / "models.config").read_text()
    assert 'name: "digits"' in config and 'base_path: "/models/digits"' in config


def test_a_process_without_keras_answers_by_both_loaders(answers):
    assert answers["keras"] == []
    assert answers["signatures"] == answers["warmed"] == SIGNATURES
    keys = [key for key in answers if key.startswith("load/")]
    assert len(keys) == len(SIGNATURES)
    for key in keys:
        other = answers[key.replace("load/", "session/")]
        if answers[key].dtype.kind == "f":
            np.testing.assert_allclose(answers[key], other, atol=1e-5)
        elif answers[key].dtype == np.uint8:
            difference = np.abs(answers[key].astype(int) - other.astype(int))
            assert difference.max() <= 1
        else:
            assert len(answers[key]) == len(other) == 7


def test_from_noise_equals_generate_with_the_averages(model, answers):
    noise, label = rows(7)
    arguments = {"labels": label, "noise": noise, "guidance_scale": GUIDANCE}
    expected = model.generate(**arguments, num_steps=2, verbose=0)
    found = answers["load/generate_from_noise/image"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    raw = model.generate(**arguments, num_steps=2, weights="raw", verbose=0)
    assert np.abs(raw - expected).max() > 1e-2


def test_the_flow_map_takes_times_labels_and_scales_of_each_row(model, answers):
    inputs = requests()["flow_map"]
    for i in range(7):
        expected = model.flow_map(
            *(inputs[name][i : i + 1] for name in ("x_t", "t", "s", "label")),
            guidance_scale=float(inputs["guidance_scale"][i]),
        )
        found = answers["load/flow_map/x_s"][i : i + 1]
        expected = keras.ops.convert_to_numpy(expected)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_image_depends_on_its_seed_and_label_alone(answers):
    images = answers["load/serving_default/image"]
    assert images.shape == (7, 4, 4, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images, answers["load/generate_2_steps/image"])
    different = [images[i].tobytes() for i in (0, 1, 3, 4, 5, 6)]
    assert len(set(different)) == 6  # 1 and 2^32 + 1; label 0 and label 1


def test_the_png_is_the_image(answers):
    files = answers["load/serving_png/image_bytes"]
    images = answers["load/serving_default/image"]
    for file, image in zip(files, images, strict=True):
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))), image[..., 0]
        )


def test_labels_out_of_range_are_invalid_arguments(answers):
    for label in ("-1", "99"):
        assert "`label` must be in [0, 3]" in answers["errors"][label]


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


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="there is no child process"
)
def test_an_error_of_the_child_process_is_passed_on(tmp_path):
    class Own(keras.layers.Layer):
        """A layer that the child cannot import."""

        image_shape = (4, 4, 1)

        def call(self, inputs):
            return inputs[0]

    model = keras_imm.IMM(Own())
    model.compile(keras.optimizers.Adam())
    with pytest.raises(RuntimeError, match=r"(?s)through TensorFlow failed.*'Own'"):
        export_saved_model(model, tmp_path / "served")
    assert list((tmp_path / "served").iterdir()) == []


@pytest.mark.skipif(
    keras.backend.backend() == "tensorflow", reason="there is no child process"
)
def test_the_child_process_knows_classes_of_modules(tmp_path, monkeypatch):
    """Within a functional backbone; and its errors keep their kind."""
    (tmp_path / "own_layers.py").write_text(OWN_LAYER)
    monkeypatch.syspath_prepend(tmp_path)
    import own_layers

    inputs = [keras.Input((4, 4, 1)), keras.Input(()), keras.Input(())]
    model = keras_imm.IMM(keras.Model(inputs, own_layers.Half()(inputs[0])))
    with pytest.warns(UserWarning, match="halves"):
        path = export_onnx(model, tmp_path / "model.onnx", 1)
    assert path.exists()
    with pytest.raises(ValueError, match="`signatures` must be some of"):
        export_saved_model(model, tmp_path / "served", signatures=["decode"])


OWN_LAYER = """
import warnings
import keras

@keras.saving.register_keras_serializable(package="own")
class Half(keras.layers.Layer):
    def build(self, shape):
        warnings.warn("a layer that halves")

    def call(self, x):
        return 0.5 * x
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="native=True is for JAX")
def test_what_jax_compiles_can_be_served(model, tmp_path):
    import tensorflow as tf

    path = export_saved_model(
        model,
        tmp_path,
        guidance_scale=GUIDANCE,
        native=True,
        value_range=WIDE,
        signatures=["generate_from_noise", "serving_default"],
        warmup=False,
    )
    served = tf.saved_model.load(str(path)).signatures
    for count in (1, 7):
        noise, label = rows(count)
        found = served["generate_from_noise"](
            noise=tf.constant(noise),
            label=tf.constant(label),
            guidance_scale=tf.fill([count], GUIDANCE),
        )["image"]
        expected = model.generate(
            label, noise=noise, guidance_scale=GUIDANCE, verbose=0
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)
    images = served["serving_default"](
        seed=tf.constant(SEEDS), label=tf.constant(LABELS)
    )["image"].numpy()
    assert (images[0] != images[1]).any() and (images[0] == images[2]).all()


# -- What does not depend on the backend


@pytest.fixture
def served(model, tmp_path):
    def export(model=model, folder="served", **options):
        import tensorflow as tf

        options = {"num_steps": 1, "warmup": False} | options
        path = export_saved_model(model, tmp_path / folder, **options)
        return tf.saved_model.load(str(path)).signatures

    return export


@on_tensorflow
def test_openvino_reads_generate_from_noise(model, tmp_path):
    import openvino

    path = export_saved_model(
        model, tmp_path, signatures=["generate_from_noise"], warmup=False
    )
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for count in (1, 7, 64):
        noise, label = rows(count)
        (found,) = compiled({"noise": noise, "label": label}).values()
        expected = model.generate(label, noise=noise, verbose=0)
        np.testing.assert_allclose(found, expected, atol=1e-3)


@on_tensorflow
def test_saved_model_cli_shows_and_runs_it(exported, tmp_path):
    program = str(pathlib.Path(sys.executable).with_name("saved_model_cli"))
    shown = subprocess.run(
        [program, "show", "--dir", exported, "--all"], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    for signature in SIGNATURES:
        assert f"signature_def['{signature}']" in shown.stdout
    assert "shape: (-1, 4, 4, 1)" in shown.stdout
    options = ["--tag_set", "serve", "--signature_def", "serving_default"]
    np.save(tmp_path / "seed.npy", SEEDS)
    np.save(tmp_path / "label.npy", LABELS)
    inputs = f"seed={tmp_path / 'seed.npy'};label={tmp_path / 'label.npy'}"
    ran = subprocess.run(
        [program, "run", "--dir", exported, *options, "--inputs", inputs],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "Result for output key image" in ran.stdout


@on_tensorflow
@pytest.mark.parametrize(("grid", "steps"), [("edm", 3), ([1.4], 2)])
def test_time_grids_are_those_of_generate(model, served, tmp_path, grid, steps):
    import onnxruntime
    import tensorflow as tf

    noise, label = rows(3)
    expected = model.generate(
        label, noise=noise, num_steps=steps, time_grid=grid, verbose=0
    )
    signatures = served(num_steps=steps, time_grid=grid)
    inputs = {"noise": tf.constant(noise), "label": tf.constant(label)}
    found = signatures["generate_from_noise"](**inputs)["image"]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    path = export_onnx(model, tmp_path / "model.onnx", steps, time_grid=grid)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {"noise": noise, "label": label})
    np.testing.assert_allclose(found, expected, atol=1e-3)


@on_tensorflow
def test_data_that_are_no_pictures_have_no_png(served):
    inputs = [keras.Input((2,)), keras.Input(()), keras.Input(())]
    times = [keras.layers.Reshape((1,))(t) for t in inputs[1:]]
    x = keras.layers.Dense(2)(keras.layers.concatenate([inputs[0], *times]))
    signatures = served(keras_imm.IMM(keras.Model(inputs, x)))
    assert "serving_png" not in signatures
    assert signatures["flow_map"].structured_outputs["x_s"].shape == (None, 2)


@on_tensorflow
def test_exports_at_the_same_time_get_versions_of_their_own(
    model, served, tmp_path, monkeypatch
):
    from keras_imm.serving import tensorflow_export

    write = tensorflow_export.write

    def slow(*arguments):
        """While this export writes, another one begins and ends."""
        write(*arguments)
        monkeypatch.setattr(tensorflow_export, "write", write)
        served()

    monkeypatch.setattr(tensorflow_export, "write", slow)
    served()
    versions = sorted(path.name for path in (tmp_path / "served").glob("[0-9]*"))
    assert versions == ["1", "2"]


@on_tensorflow
def test_an_unconditional_model_takes_seeds_alone(served):
    import tensorflow as tf

    signatures = served(
        trained_model(num_classes=0),
        sampler="restart",
        num_steps=3,
        value_range=WIDE,
    )
    assert sorted(signatures) == [
        *("flow_map", "generate_3_steps", "serving_default", "serving_png")
    ]
    images = signatures["serving_default"](seed=tf.constant([1, 1, 2], tf.int64))
    images = images["image"].numpy()
    assert (images[0] == images[1]).all() and (images[0] != images[2]).any()


@on_tensorflow
def test_restart_adds_noise_of_the_seed_at_every_step(model, served):
    """Against the sampler in NumPy, with TensorFlow's own Philox for the noise."""
    import tensorflow as tf

    signatures = served(sampler="restart", num_steps=3, value_range=(-40.0, 40.0))
    seed = 12345678901
    found = (
        signatures["generate_3_steps"](
            seed=tf.constant([seed], tf.int64), label=tf.constant([1])
        )["image"]
        .numpy()[0]
        .astype("float64")
    )

    def noise(stream):
        key = tf.constant([seed], tf.uint64)
        counter = tf.constant([0, stream], tf.uint64)
        z = tf.raw_ops.StatelessRandomNormalV2(
            shape=[1, 4, 4, 1], key=key, counter=counter, alg=1
        )
        return 0.5 * z.numpy()

    times = np.linspace(0.994, 0.0, 4)
    x = noise(0)
    for i in range(3):
        x = model.flow_map(x.astype("float32"), times[i], 0.0, [1]).numpy()
        if i < 2:
            t = times[i + 1]
            x = (1 - t) * x + t * noise(i + 1)
    expected = np.clip((x[0] + 40.0) * 255 / 80 + 0.5, 0, 255)
    assert np.abs(expected - found).max() < 1.01
    assert expected.std() > 1


@on_tensorflow
@pytest.mark.parametrize(
    ("signature", "changes", "message"),
    [
        ("serving_default", {"seed": (2, 1)}, "shape_of_seed"),
        ("serving_default", {"label": (1,)}, "`seed` and `label` must have as many"),
        ("serving_default", {"seed": ()}, "shape_of_seed"),
        ("generate_from_noise", {"noise": (2, 4, 4)}, "shape_of_noise"),
        ("generate_from_noise", {"noise": (2, 4, 1, 4)}, "shape_of_noise"),
    ],
)
def test_a_graph_checks_shapes_that_a_server_does_not(
    exported, signature, changes, message
):
    """In a session, with placeholders of no shape in the place of the inputs."""
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    file = (exported / "saved_model.pb").read_bytes()
    (meta_graph,) = saved_model_pb2.SavedModel.FromString(file).meta_graphs
    inputs = meta_graph.signature_def[signature].inputs
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        feeds = {
            name: tf.compat.v1.placeholder(info.dtype) for name, info in inputs.items()
        }
        names = {info.name: feeds[name] for name, info in inputs.items()}
        loaded = tf.compat.v1.saved_model.load(
            session, ["serve"], str(exported), input_map=names
        )
        outputs = loaded.signature_def[signature].outputs
        good = {
            name: np.zeros(
                [2, *(d.size for d in info.tensor_shape.dim[1:])],
                tf.dtypes.as_dtype(info.dtype).as_numpy_dtype,
            )
            for name, info in inputs.items()
        }
        bad = good | {k: np.zeros(v, good[k].dtype) for k, v in changes.items()}
        result = {name: info.name for name, info in outputs.items()}
        session.run(result, {feeds[k]: v for k, v in good.items()})
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            session.run(result, {feeds[k]: v for k, v in bad.items()})


@on_tensorflow
def test_value_range_decides_what_is_black_and_white(model, served):
    import tensorflow as tf

    inputs = {"seed": tf.constant(SEEDS), "label": tf.constant(LABELS)}
    wide = served(value_range=(-3.0, 5.0))["serving_default"](**inputs)["image"]
    known = served(folder="known")["flow_map"]
    assert wide.numpy().std() > 1 and known is not None
    narrow = served(folder="narrow", value_range=(0.0, 1e-6))
    binary = narrow["serving_default"](**inputs)["image"].numpy()
    assert set(np.unique(binary)) == {0, 255}
    # White exactly where the wide range says that the value is above 0: 3/8 of 255.
    sure = np.abs(wide.numpy().astype(int) - 96) > 1
    np.testing.assert_array_equal(binary[sure] == 255, wide.numpy()[sure] > 96)


@on_tensorflow
def test_latents_are_decoded(model, served):
    """With a stand-in for the autoencoder, which doubles the sides of an image."""
    import tensorflow as tf

    from keras_imm.latents import denormalize

    latents = trained_latent_model()
    inputs = keras.Input((None, None, 4))
    x = keras.layers.Conv2DTranspose(3, 2, 2, activation="tanh")(inputs)
    vae = Autoencoder(keras.Model(inputs, x), sigma_data=0.5)
    signatures = served(latents, latents=vae)
    z = np.random.default_rng(0).standard_normal((2, 4, 4, 4)).astype("float32")
    found = signatures["decode"](latents=tf.constant(z))["image"].numpy()
    pixels = vae.decoder(denormalize(z), training=False).numpy()
    np.testing.assert_array_equal(
        found, (255 * np.clip(0.5 * pixels + 0.5, 0, 1)).astype("uint8")
    )
    images = signatures["serving_default"](seed=tf.constant([1, 2], tf.int64))
    assert images["image"].shape == (2, 8, 8, 3)


class Autoencoder(keras_imm.latents.StableDiffusionVAE):
    def __init__(self, decoder, sigma_data):
        self.decoder, self.sigma_data = decoder, sigma_data


def trained_latent_model():
    backbone = keras_imm.backbones.DiT(
        image_shape=(4, 4, 4), patch_size=2, hidden_size=16, depth=1, num_heads=2
    )
    model = keras_imm.IMM(backbone)
    for v in model.trainable_variables:
        v.assign(0.3 * np.random.default_rng(0).standard_normal(v.shape))
    return model


@on_tensorflow
def test_versions_count_on_and_nothing_is_left_of_a_failure(
    model, served, tmp_path, monkeypatch
):
    served()
    served(version=7)
    served()
    folder = tmp_path / "served"
    versions = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert versions == ["1", "7", "8"]
    with pytest.raises(ValueError, match=r"`version` must be new.*version=7"):
        served(version=7)
    from keras_imm.serving import server_files

    def fail(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(server_files, "write_warmup", fail)
    with pytest.raises(OSError, match="No space"):
        served()
    versions = sorted(path.name for path in folder.iterdir() if path.is_dir())
    assert versions == ["1", "7", "8"]


@on_tensorflow
def test_a_saved_file_is_exported_like_the_model(model, served, tmp_path):
    import tensorflow as tf

    model.save(tmp_path / "model.keras")
    noise, label = rows(3)
    inputs = {"noise": tf.constant(noise), "label": tf.constant(label)}
    one, other = (
        served(given, folder=str(i))["generate_from_noise"](**inputs)["image"]
        for i, given in enumerate((model, tmp_path / "model.keras"))
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 0}, "`num_steps` must"),
        ({"num_steps": (1, 1)}, "`num_steps` must be one or more different"),
        ({"num_steps": ()}, "`num_steps` must be one or more different"),
        ({"default_num_steps": 3}, r"`default_num_steps` must be one of 1, 2, 8"),
        ({"guidance_scale": "a"}, "`guidance_scale` must be a finite number"),
        ({"guidance_scale": np.nan}, "`guidance_scale` must be a finite number"),
        ({"sampler": "euler"}, "`sampler` must"),
        ({"time_grid": "even"}, "`time_grid` must"),
        ({"time_grid": [1.4]}, r"`num_steps` must be 2"),
        ({"weights": "average"}, "`weights` must"),
        ({"value_range": (1, 0)}, "`value_range` must"),
        ({"signatures": "decode"}, "`signatures` must"),
        ({"version": 0}, "`version` must"),
        ({"native": 1}, "`native` must"),
        ({"warmup": 0}, "`warmup` must"),
        ({"time_grid": 3}, "`time_grid` must"),
        ({"value_range": None}, "`value_range` must"),
        ({"latents": "vae"}, "`latents` must"),
    ],
)
def test_arguments(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(model, tmp_path / "served", **options)
    assert not (tmp_path / "served").exists()


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no model file at"):
        export_saved_model(tmp_path / "model.keras", tmp_path / "served")
    with pytest.raises(ValueError, match="`model` must"):
        export_saved_model(3, tmp_path / "served")
    with pytest.raises(ValueError, match="must be built"):
        export_onnx(keras_imm.IMM(keras.layers.Dense(1)), tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []


@on_tensorflow
def test_unknown_signatures_are_listed(model, tmp_path):
    with pytest.raises(
        ValueError, match=r"some of serving_default.*Received: 'decode'"
    ):
        export_saved_model(model, tmp_path, signatures=["decode"])
    assert list(tmp_path.iterdir()) == []


@on_tensorflow
def test_exporting_leaves_the_model_as_it_was(model, served):
    before = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    served()
    after = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
