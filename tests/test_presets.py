"""Trained models: saved as presets, made again, and sampled as the presets say."""

import dataclasses
import importlib.util
import inspect
import json
import os
import pathlib
import subprocess
import sys

import hub_server
import keras
import numpy as np
import pytest
import save_model
import save_preset
from keras import ops
from newcomer_objectives import AveragedTarget
from save_preset import PLAN, samples, trained_model
from scripts import ON_THE_CPU, ROOT
from small_dit import small_dit

import keras_imm
from keras_imm.files import presets as preset_files
from keras_imm.samplers import SamplingPlan

pytestmark = pytest.mark.any_backend("folders and files")

SCRIPT = pathlib.Path(save_preset.__file__)


@pytest.fixture(scope="module")
def trained():
    return trained_model()


@pytest.fixture
def preset(trained, tmp_path):
    trained.save_to_preset(tmp_path / "clothes")
    return tmp_path / "clothes"


# -- What is saved


def test_samples_are_those_of_the_averages_to_half_precision(trained, preset):
    """Half precision moves samples of up to 1.3 by at most 7e-4, averages by 0.2."""
    model = keras_imm.FlowMapModel.from_preset(preset)
    assert type(model) is keras_imm.IMM
    expected = samples(trained)
    np.testing.assert_allclose(samples(model), expected, rtol=0, atol=2e-3)
    np.testing.assert_array_equal(samples(model, weights="raw"), samples(model))
    raw = samples(trained, weights="raw")
    assert np.max(np.abs(raw - expected)) > 0.1
    trained.save_to_preset(preset, weights="raw")
    model = keras_imm.FlowMapModel.from_preset(preset)
    np.testing.assert_allclose(samples(model), raw, rtol=0, atol=2e-3)


def test_full_precision_makes_the_same_samples(trained, preset):
    trained.save_to_preset(preset, dtype="float32")
    model = keras_imm.FlowMapModel.from_preset(preset)
    np.testing.assert_allclose(samples(model), samples(trained), rtol=0, atol=1e-6)
    for saved, value in zip(
        model.flow.variables, trained.weights_for_sampling(), strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(saved), ops.convert_to_numpy(value)
        )


def test_folders_that_were_made_are_gone_when_it_fails(trained, tmp_path, monkeypatch):
    def save_weights(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(type(trained), "save_weights", save_weights)
    with pytest.raises(OSError, match="No space left"):
        trained.save_to_preset(tmp_path / "new" / "preset")
    assert not list(tmp_path.iterdir())


def test_a_model_is_not_changed_by_being_saved(trained, preset):
    before = [ops.convert_to_numpy(v) for v in trained.variables]
    trained.save_to_preset(preset)
    for old, new in zip(before, trained.variables, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))


def test_the_weights_are_a_file_as_any_other(trained, preset):
    model = save_model.new_model()
    with pytest.warns(UserWarning, match="loading for optimizer"):  # which it has not
        model.load_weights(preset / "model.weights.h5")
    np.testing.assert_allclose(samples(model, **plan()), samples(trained), atol=2e-3)


def plan():
    """The preset's, as arguments."""
    return {k: v for k, v in PLAN.arguments().items() if v is not None}


def test_new_weights_can_be_asked_for(preset):
    model = keras_imm.FlowMapModel.from_preset(preset, load_weights=False)
    zeros = ops.convert_to_numpy(model.backbone.final_layer.projection.kernel)
    assert not np.any(zeros)  # as a network is made
    assert model.sampling_plan == PLAN
    (preset / "model.weights.h5").unlink()
    keras_imm.FlowMapModel.from_preset(preset, load_weights=False)
    with pytest.raises(ValueError, match=r"no model\.weights\.h5"):
        keras_imm.FlowMapModel.from_preset(preset)
    with pytest.raises(ValueError, match="`load_weights` must be True or False"):
        keras_imm.FlowMapModel.from_preset(preset, load_weights=1)


def test_it_trains_on(preset):
    model = keras_imm.FlowMapModel.from_preset(preset)
    assert not model.compiled
    before = samples(model)
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True))
    np.testing.assert_allclose(samples(model), before, rtol=0, atol=1e-6)
    save_model.train(model, 1)
    assert np.max(np.abs(samples(model, weights="raw") - before)) > 1e-3


def without_checksum(preset):
    """As presets were before they had one."""
    path = preset / "metadata.json"
    metadata = json.loads(path.read_text())
    assert metadata.pop("weights_sha256")
    path.write_text(json.dumps(metadata))


def test_other_weights_than_were_saved_are_refused(preset):
    path = preset / "model.weights.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: model\.weights\.h5 has another"):
        keras_imm.FlowMapModel.from_preset(preset)
    with pytest.raises(ValueError, match="is damaged"):
        keras_imm.upload_preset("hf://user/name", preset)
    keras_imm.FlowMapModel.from_preset(preset, load_weights=False)


def test_a_preset_that_makes_nothing_is_not_uploaded(preset):
    config = json.loads((preset / "config.json").read_text())
    text = json.dumps({**config, "registered_name": "os>system"})
    (preset / "config.json").write_text(text)
    with pytest.raises(ValueError, match="registered_name='os>system'"):
        keras_imm.upload_preset("hf://user/name", preset)


def test_the_name_of_the_librarys_own_is_kept_for_it(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"with its path, '\./imm_digits'"):
        trained.save_to_preset("imm_digits")
    assert not list(tmp_path.iterdir())
    for place in ("./imm_digits", pathlib.Path("imm_digits")):
        trained.save_to_preset(place)
        found = keras_imm.FlowMapModel.from_preset(place)
        np.testing.assert_allclose(samples(found), samples(trained), rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"description": "abc"}, "`description` must be a Mapping"),
        ({"model_card": 3}, "`model_card` must be a str"),
    ],
)
def test_wrong_texts_are_refused(trained, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        trained.save_to_preset(tmp_path / "a", **options)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_text("no weights"), r"model\.weights\.h5"),
        (lambda path: keras_imm.IMM(small_dit(depth=2)).save_weights(path), "block_1"),
    ],
)
def test_weights_that_do_not_fit_are_named(preset, damage, message):
    damage(preset / "model.weights.h5")
    without_checksum(preset)
    with pytest.raises(ValueError, match=rf"Cannot load weights(.|\n)*{message}"):
        keras_imm.FlowMapModel.from_preset(preset)


def test_another_class_is_refused(preset, tmp_path):
    assert type(keras_imm.IMM.from_preset(preset)) is keras_imm.IMM
    other = keras_imm.FlowMapModel(small_dit(), "flow_matching")
    other.save_to_preset(tmp_path / "other")
    assert keras_imm.FlowMapModel.from_preset(tmp_path / "other").objective.sampler
    with pytest.raises(ValueError, match="must make a IMM"):
        keras_imm.IMM.from_preset(tmp_path / "other")


def test_a_class_that_nobody_could_load_is_not_saved(tmp_path):
    class Unregistered(keras_imm.IMM):
        pass

    with pytest.raises(ValueError, match="registered for saving"):
        Unregistered(small_dit()).save_to_preset(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_weight_out_of_range_is_named(make_model, tmp_path):
    model = make_model()
    weight = model.backbone.blocks[0].trainable_variables[0]
    weight.assign(7e4 * ops.ones(weight.shape))
    with pytest.raises(ValueError, match=r"Weight '.*block_0/.*'float16'.*70000"):
        model.save_to_preset(tmp_path / "a")
    model.save_to_preset(tmp_path / "a", dtype="float32")
    with pytest.raises(ValueError, match="`dtype` must be one of 'float16', 'float32'"):
        model.save_to_preset(tmp_path / "a", dtype="int8")


def test_averages_of_an_objective_take_no_space_and_begin_anew(tmp_path):
    model = keras_imm.FlowMapModel(small_dit(hidden_size=64), AveragedTarget())
    without = keras_imm.FlowMapModel(small_dit(hidden_size=64), "flow_matching")
    sizes = []
    for name, one in (("with", model), ("without", without)):
        for v in one.backbone.trainable_variables:
            v.assign(np.random.default_rng(0).standard_normal(v.shape))
        one.save_to_preset(tmp_path / name)
        sizes.append((tmp_path / name / "model.weights.h5").stat().st_size)
    assert sizes[0] < 1.2 * sizes[1]
    loaded = keras_imm.FlowMapModel.from_preset(tmp_path / "with")
    loaded.compile(keras.optimizers.SGD(0.0))
    save_model.train(loaded, 1)
    for average, weight in zip(
        loaded.averaged_weights, loaded.backbone.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(average), ops.convert_to_numpy(weight)
        )


@keras.saving.register_keras_serializable(package="test_presets")
class Perceptron(keras.layers.Layer):
    """A backbone for data of any number of values."""

    def build(self, input_shape):
        self.dense = keras.layers.Dense(input_shape[0][-1], "tanh", name="dense")
        self.dense.build((None, input_shape[0][-1] + 2))

    def call(self, inputs):
        x, c_t, c_s = inputs
        return self.dense(ops.concatenate([x, c_t[:, None], c_s[:, None]], axis=-1))


def test_data_of_any_shape(tmp_path):
    """A backbone that does not know it, of points in place of images."""
    model = keras_imm.IMM(Perceptron(), time_scale=1.0)  # so small a network, unscaled
    model.build((None, 2))
    kernel = model.backbone.dense.kernel
    kernel.assign(np.random.default_rng(1).uniform(-1, 1, kernel.shape))
    model.save_to_preset(tmp_path / "points")
    loaded = keras_imm.FlowMapModel.from_preset(tmp_path / "points")
    assert loaded.data_shape == (2,)
    noise = np.random.default_rng(0).standard_normal((3, 2))
    np.testing.assert_allclose(
        loaded.generate(noise=noise), model.generate(noise=noise), rtol=0, atol=2e-3
    )
    with pytest.raises(ValueError, match="shape of the data is not known yet"):
        keras_imm.IMM(Perceptron()).save_to_preset(tmp_path / "unknown")


def test_the_description(trained, preset):
    training = {"data": "clothes", "licence": "MIT", "seed": 3, "fid": {"2": 12.5}}
    trained.save_to_preset(preset, description=training, model_card="# Clothes\n")
    about = keras_imm.presets.metadata(preset)
    assert about["training"] == training
    assert about["objective"]["class_name"] == "MomentMatching"
    assert about["sampling_plan"]["num_steps"] == 3
    assert about["sampling_plan"]["sampler"]["class_name"] == "Pushforward"
    assert about["pixels"]["config"] == {"scale": 40.0, "offset": 90.0}
    assert about["class_names"] == ["Bag", "Boot", "Coat"]
    assert (about["image_shape"], about["weights"]) == ([4, 4, 1], "ema")
    assert about["parameter_count"] == sum(
        int(np.prod(v.shape)) for v in trained.backbone.weights
    )
    assert (preset / "README.md").read_text() == "# Clothes\n"


# -- What goes with a model


def test_generate_follows_the_plan_where_nothing_is_said(trained, preset):
    model = keras_imm.FlowMapModel.from_preset(preset)
    plain = keras_imm.FlowMapModel.from_preset(preset)
    plain.sampling_plan = None
    np.testing.assert_array_equal(samples(model), samples(plain, **plan()))
    for said in ({"num_steps": 1}, {"guidance_scale": 3.0}, {"time_grid": [1.4]}):
        expected = {**plan(), **said}
        if "time_grid" in said:
            del expected["num_steps"]
        np.testing.assert_array_equal(
            samples(model, **said), samples(plain, **expected)
        )
        assert np.max(np.abs(samples(model, **said) - samples(model))) > 5e-3
    predicted = model.predict(save_model.LABELS[:4], verbose=0)
    assert predicted.shape == (4, 4, 4, 1)


def test_a_model_without_a_plan_checks_arguments_once(preset, monkeypatch):
    model = keras_imm.FlowMapModel.from_preset(preset)
    assert model.own_plan(num_steps=4) == dataclasses.replace(PLAN, num_steps=4)
    model.sampling_plan = None
    assert model.own_plan() == SamplingPlan()
    checked = []
    monkeypatch.setattr(SamplingPlan, "__post_init__", lambda plan: checked.append(0))
    assert model.own_plan(num_steps=4, time_grid=None).num_steps == 4
    assert len(checked) == 1


def test_another_number_of_steps_than_that_of_the_plans_etas(preset):
    """The etas are dropped for it, in pictures during training too."""
    model = keras_imm.FlowMapModel.from_preset(preset)
    model.sampling_plan = SamplingPlan(time_grid=[1.4], guidance_scale=2.0)
    grid = keras_imm.callbacks.SampleGrid("{step}.png", labels=[0], num_steps=(2, 4))
    grid.set_model(model)
    grid.on_train_begin()
    pictures = grid.generate()
    noise = keras_imm.samplers.standard_noise(grid.seed, 1, 1, model.data_shape)[0]
    plain = keras_imm.FlowMapModel.from_preset(preset)
    plain.sampling_plan = None
    for steps, time_grid in ((2, [1.4]), (4, "uniform")):
        expected = plain.generate(
            [0], num_steps=steps, guidance_scale=2.0, time_grid=time_grid, noise=noise
        )
        found = model.generate([0], num_steps=steps, noise=noise)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(pictures[steps], expected)


def test_pictures_during_training_follow_the_plan(preset, tmp_path, monkeypatch):
    """Also its sampler, which draws more noise than the objective's."""
    model = keras_imm.FlowMapModel.from_preset(preset)
    model.sampling_plan = SamplingPlan(sampler="restart", guidance_scale=2.0)
    asked = []
    generate = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **given: asked.append(given) or generate(**given)
    )
    model.compile("sgd")
    grid = keras_imm.callbacks.SampleGrid(
        tmp_path / "{step}.png", labels=[0, 1], num_steps=(2,)
    )
    model.fit(
        save_model.IMAGES, save_model.LABELS, batch_size=16, verbose=0, callbacks=[grid]
    )
    (given,) = asked
    assert given["noise"].shape == (2, 2, 4, 4, 1)  # the first, and between two steps


def test_what_goes_with_a_model_is_saved_with_it(trained, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.sampling_plan == PLAN
    assert loaded.class_names == ("Bag", "Boot", "Coat")
    assert loaded.pixels.get_config() == trained.pixels.get_config()
    np.testing.assert_allclose(samples(loaded), samples(trained), rtol=0, atol=1e-6)


def test_a_plan_with_a_sampler_and_eta_is_saved(tmp_path):
    for kind in (keras_imm.IMM, keras_imm.FlowMapModel):
        model = kind(small_dit())
        model.sampling_plan = SamplingPlan(sampler="restart", time_grid=[2.0, 1.4])
        model.save_to_preset(tmp_path / "a")
        loaded = keras_imm.FlowMapModel.from_preset(tmp_path / "a")
        assert loaded.sampling_plan.get_config() == model.sampling_plan.get_config()
        assert loaded.sampling_plan.num_steps == 3


def test_files_without_are_as_they_were():
    for model in (keras_imm.IMM(small_dit()), keras_imm.FlowMapModel(small_dit())):
        config = model.get_config()
        assert not {"sampling_plan", "pixels", "class_names"} & set(config)
        again = type(model).from_config(json.loads(json.dumps(config)))
        assert again.sampling_plan is again.pixels is again.class_names is None


def test_pixels(trained):
    made = samples(trained)
    pictures = trained.to_uint8(made)
    assert pictures.dtype == np.uint8
    expected = np.clip(np.rint(40.0 * made.astype("float64") + 90.0), 0, 255)
    np.testing.assert_array_equal(pictures, expected)
    with pytest.raises(ValueError, match=r"give the model `pixels`"):
        keras_imm.IMM(small_dit()).to_uint8(made)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("sampling_plan", {"num_steps": 2}, "must be a SamplingPlan"),
        ("sampling_plan", SamplingPlan(weights="raw"), "weights='raw'"),
        ("sampling_plan", SamplingPlan(time_grid=[0.0]), "eta"),
        ("pixels", lambda x: x, "must be callable and have a `get_config`"),
        ("pixels", 127.5, "must be callable and have a `get_config`"),
        ("pixels", keras.layers.Rescaling(2.0), "layer"),
        ("class_names", "abc", "a name for each label, here 3"),
        ("class_names", ["a", "b"], "a name for each label, here 3"),
        ("class_names", [0, 1, 2], "a name for each label, here 3"),
    ],
)
def test_what_does_not_suit_a_model_is_named(name, value, message):
    model = keras_imm.IMM(small_dit())
    with pytest.raises(ValueError, match=message):
        setattr(model, name, value)
    assert getattr(model, name) is None
    if name == "sampling_plan":
        with pytest.raises(ValueError, match="num_classes"):
            unconditional = keras_imm.IMM(small_dit(num_classes=0))
            unconditional.sampling_plan = PLAN


def test_labels_taken_away_take_names_and_guidance_with_them(trained):
    copy = keras_imm.checkpoints.with_num_classes(trained, 5)
    assert copy.class_names is None and copy.sampling_plan == PLAN
    assert copy.pixels.get_config() == trained.pixels.get_config()
    assert keras_imm.checkpoints.with_num_classes(trained, 0).sampling_plan is None


# -- Where presets are


def test_a_model_that_comes_with_the_library(trained, preset, monkeypatch):
    monkeypatch.setattr(preset_files, "BUILT_IN", preset.parent)
    assert keras_imm.presets.names() == ["clothes"]
    model = keras_imm.FlowMapModel.from_preset("clothes")
    np.testing.assert_allclose(samples(model), samples(trained), rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match=r"library \('clothes'\).*preset='shoes'"):
        keras_imm.FlowMapModel.from_preset("shoes")


def test_those_of_the_package_are_in_its_folder():
    package = pathlib.Path(inspect.getfile(keras_imm)).parent
    assert package / "presets" == preset_files.BUILT_IN
    assert preset_files.BUILT_IN.is_dir()
    for name in keras_imm.presets.names():
        assert keras_imm.FlowMapModel.from_preset(name).sampling_plan is not None


@pytest.mark.slow("a child process")
@pytest.mark.one_backend("the hub knows no backend")
def test_to_the_hub_and_back(trained, preset, tmp_path):
    """By the hub's own client, which is told of another address."""
    code = f"""
import numpy as np, keras_imm, save_preset
keras_imm.upload_preset("hf://user/clothes", {str(preset)!r})
model = keras_imm.FlowMapModel.from_preset("hf://user/clothes")
np.save({str(tmp_path / "samples.npy")!r}, save_preset.samples(model))
"""
    there = tmp_path / "hub"
    with hub_server.serving("user/clothes", there) as (address, asked):
        environment = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_HOME": str(tmp_path / "cache"),
            "HF_TOKEN": "hf_none",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        }
        subprocess.run(
            [sys.executable, "-c", code], env=environment, check=True, timeout=300
        )
    paths = [path for _, path in asked]
    assert "/api/repos/create" in paths
    assert sorted(os.listdir(there)) == sorted(os.listdir(preset))
    for name in os.listdir(preset):
        assert (there / name).read_bytes() == (preset / name).read_bytes()
    np.testing.assert_allclose(
        np.load(tmp_path / "samples.npy"), samples(trained), rtol=0, atol=2e-3
    )


@pytest.mark.every_backend
@pytest.mark.slow("child processes")
@pytest.mark.parametrize("written_by", ["tensorflow", "jax", "torch"])
def test_from_each_backend(written_by, tmp_path):
    if importlib.util.find_spec(written_by) is None:
        pytest.skip(f"{written_by} is not installed here")
    environment = os.environ | ON_THE_CPU | {"KERAS_BACKEND": written_by}
    subprocess.run(
        [sys.executable, SCRIPT, tmp_path], env=environment, check=True, timeout=300
    )
    expected = dict(np.load(tmp_path / "samples.npz"))
    found = samples(keras_imm.FlowMapModel.from_preset(tmp_path / "preset"))
    np.testing.assert_allclose(found, expected["preset"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(found, expected["trained"], rtol=0, atol=2e-3)
    assert np.max(np.abs(found)) > 0.1
