"""What a served model answers, against `generate`, `flow_map` and NumPy."""

import base64
import io

import keras
import numpy as np
import pytest
from gaussian_flow import gaussian_model
from PIL import Image
from served_models import (
    GUIDANCE,
    LABELS,
    SEEDS,
    WIDE,
    on_tensorflow,
    requests,
    rows,
    trained_model,
)

import keras_imm
from keras_imm.samplers import SamplingPlan
from keras_imm.serving import export_saved_model


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


@on_tensorflow
@pytest.mark.parametrize(("grid", "steps"), [("edm", 3), ([1.4], 2)])
def test_time_grids_are_those_of_generate(model, served, grid, steps):
    import tensorflow as tf

    noise, label = rows(3)
    expected = model.generate(
        label, noise=noise, num_steps=steps, time_grid=grid, verbose=0
    )
    signatures = served(num_steps=steps, time_grid=grid)
    inputs = {"noise": tf.constant(noise), "label": tf.constant(label)}
    found = signatures["generate_from_noise"](**inputs)["image"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@on_tensorflow
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_samplers_that_follow_the_velocity(model, served, sampler):
    import tensorflow as tf

    noise, label = rows(5)
    scale = tf.fill([5], GUIDANCE)
    signatures = served(num_steps=(1, 4), sampler=sampler, guidance_scale=GUIDANCE)
    inputs = {"noise": tf.constant(noise), "label": tf.constant(label)}
    found = signatures["generate_from_noise"](**inputs, guidance_scale=scale)["image"]
    request = {"noise": noise, "guidance_scale": GUIDANCE, "verbose": 0}
    expected = model.generate(label, sampler=sampler, num_steps=1, **request)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert {"generate_1_steps", "generate_4_steps"} <= set(signatures)

    default = served(
        folder="default", num_steps=4, sampler=sampler, guidance_scale=GUIDANCE
    )
    found = default["generate_from_noise"](**inputs, guidance_scale=scale)["image"]
    expected = model.generate(label, sampler=sampler, num_steps=4, **request)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    pushed = model.generate(label, num_steps=4, **request)
    assert np.abs(pushed - expected).max() > 1e-2


@on_tensorflow
@pytest.mark.parametrize("sampler", ["pushforward", "euler"])
def test_guidance_in_an_interval(model, served, sampler):
    """Of each row's own scale, in every signature that is guided."""
    import tensorflow as tf

    noise, label = rows(5)
    interval, scale = (0.3, 0.7), 3.0
    options = {"sampler": sampler, "guidance_scale": scale}
    signatures = served(num_steps=4, guidance_interval=interval, **options)
    inputs = {"label": tf.constant(label), "guidance_scale": tf.fill([5], scale)}
    found = signatures["generate_from_noise"](noise=tf.constant(noise), **inputs)
    request = {"noise": noise, "num_steps": 4, "verbose": 0, **options}
    expected = model.generate(label, guidance_interval=interval, **request)
    np.testing.assert_allclose(found["image"], expected, atol=1e-4)
    assert np.abs(model.generate(label, **request) - expected).max() > 1e-2

    t = np.array([0.2, 0.4, 0.5, 0.6, 0.8], "float32")
    found = signatures["flow_map"](
        x_t=tf.constant(noise), t=tf.constant(t), s=tf.fill([5], 0.1), **inputs
    )
    inside, outside = (
        keras.ops.convert_to_numpy(
            model.flow_map(noise, t, np.full(5, 0.1, "float32"), label, of)
        )
        for of in (scale, None)
    )
    expected = np.where((t > 0.3).reshape(5, 1, 1, 1), inside, outside)
    expected[4] = outside[4]
    np.testing.assert_allclose(found["x_s"], expected, atol=1e-4)


@on_tensorflow
def test_none_is_the_objectives_own(served, tmp_path):
    """Flow matching samples by Euler's method."""
    import tensorflow as tf

    flow_matching = gaussian_model()
    noise = np.random.default_rng(0).standard_normal((3, 2, 2, 1)).astype("float32")
    found = served(flow_matching, num_steps=5)["generate_from_noise"](
        noise=tf.constant(noise)
    )["image"]
    expected = flow_matching.generate(noise=noise, num_steps=5, sampler="euler")
    np.testing.assert_allclose(found, expected, atol=1e-5)


@on_tensorflow
def test_data_that_are_no_pictures_have_no_png(served):
    inputs = [keras.Input((2,)), keras.Input(()), keras.Input(())]
    times = [keras.layers.Reshape((1,))(t) for t in inputs[1:]]
    x = keras.layers.Dense(2)(keras.layers.concatenate([inputs[0], *times]))
    signatures = served(keras_imm.IMM(keras.Model(inputs, x)))
    assert "serving_png" not in signatures
    assert signatures["flow_map"].structured_outputs["x_s"].shape == (None, 2)


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


@pytest.fixture
def planned(model):
    """The model with a plan and pixels of its own."""
    model.sampling_plan = SamplingPlan(
        time_grid=[2.0, 1.4], guidance_scale=2.0, guidance_interval=(0.3, 0.97)
    )
    model.pixels = keras_imm.Pixels(scale=30.0, offset=110.0)
    yield model
    model.sampling_plan = model.pixels = None


@pytest.mark.slow("an export of its own")
def test_none_is_the_models_own(planned, served):
    """Its plan, but for the list of eta where the steps are others; its pixels."""
    import tensorflow as tf

    from keras_imm.serving.row_noise import row_normal

    signatures = served(planned, num_steps=None)
    steps = {name for name in signatures if name.startswith("generate_")}
    assert steps == {
        "generate_from_noise",
        *(f"generate_{n}_steps" for n in (1, 2, 3, 8)),
    }
    noise, label = rows(7)
    inputs = {
        "label": tf.constant(label),
        "guidance_scale": tf.fill([7], 2.0),
    }
    found = signatures["generate_from_noise"](noise=tf.constant(noise), **inputs)
    expected = planned.generate(label, noise=noise, verbose=0)
    np.testing.assert_allclose(found["image"], expected, atol=1e-3)

    seeds = tf.range(7, dtype=tf.int64)
    noise = tf.reshape(row_normal(seeds, 16), (7, 4, 4, 1)).numpy()
    default = signatures["serving_default"](seed=seeds, label=tf.constant(label))
    two = signatures["generate_2_steps"](seed=seeds, **inputs)
    for answer, given in ((default, {}), (two, {"num_steps": 2})):
        samples = planned.generate(label, noise=noise, verbose=0, **given)
        expected = planned.to_uint8(samples).astype(int)
        difference = np.abs(answer["image"].numpy().astype(int) - expected)
        assert difference.max() <= 1 and np.mean(difference) < 0.02
        assert expected.std() > 20


@on_tensorflow
@pytest.mark.slow("an export of its own")
def test_arguments_take_the_places_of_the_models_own(planned, served):
    import tensorflow as tf

    options = {"time_grid": "edm", "guidance_scale": 1.0, "num_steps": 2}
    options["guidance_interval"] = (0.0, 1.0)
    signatures = served(
        planned,
        signatures=["generate_from_noise", "serving_default"],
        value_range=(0.0, 1e-6),
        **options,
    )
    noise, label = rows(3)
    found = signatures["generate_from_noise"](
        noise=tf.constant(noise), label=tf.constant(label), guidance_scale=tf.ones(3)
    )
    expected = planned.generate(label, noise=noise, verbose=0, **options)
    np.testing.assert_allclose(found["image"], expected, atol=1e-3)
    bytes_ = signatures["serving_default"](
        seed=tf.constant([1, 2], tf.int64), label=tf.constant([0, 1])
    )["image"].numpy()
    assert np.mean((bytes_ == 0) | (bytes_ == 255)) > 0.9


@on_tensorflow
def test_unknown_signatures_are_listed(model, tmp_path):
    with pytest.raises(
        ValueError, match=r"some of serving_default.*Received: 'decode'"
    ):
        export_saved_model(model, tmp_path, signatures=["decode"])
    assert list(tmp_path.iterdir()) == []
