"""What users of Keras do by habit works as its name says, or is refused with words."""

import csv
import threading
import warnings

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm


@pytest.fixture
def images():
    return 0.5 * np.random.default_rng(0).standard_normal((16, 4, 4, 1), "float32")


def new_model(objective="moment_matching", optimizer=None, **options):
    """A model of which no weight is zero, with averages that lag behind."""
    backbone = small_dit(num_classes=0, **options)
    model = keras_imm.FlowMapModel(backbone, objective)
    rng = np.random.default_rng(7)
    for v in backbone.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape))
    averaging = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)
    model.compile(averaging if optimizer is None else optimizer)
    return model


def fit(model, images, epochs=2, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, **options}
    return model.fit(images, epochs=epochs, **options)


def samples(model, weights="ema"):
    noise = np.random.default_rng(3).standard_normal((4, 4, 4, 1)).astype("float32")
    return model.generate(noise=noise, weights=weights)


# -- Whose weights are sampled


@pytest.mark.parametrize("objective", ["moment_matching", "shortcut"])
def test_early_stopping_restores_the_averages_of_the_best_epoch(images, objective):
    model = new_model(objective)
    seen, averages = [], []

    def remember(epoch, logs):
        logs["quality"] = [3.0, 1.0, 2.0, 2.0][epoch]
        seen.append(samples(model))
        averages.append([np.array(v) for v in map(numpy, model.averaged())])

    model.averaged = lambda: [v for _, v in model._named_averages()]
    stop = keras.callbacks.EarlyStopping(
        "quality", patience=2, mode="min", restore_best_weights=True
    )
    record = keras.callbacks.LambdaCallback(on_epoch_end=remember)
    fit(model, images, epochs=9, callbacks=[record, stop])
    assert len(seen) == 4
    np.testing.assert_array_equal(samples(model), seen[1])
    assert np.abs(seen[3] - seen[1]).max() > 1e-4
    for variable, value in zip(model.averaged(), averages[1], strict=True):
        np.testing.assert_array_equal(numpy(variable), value)


def test_a_callback_list_of_two_fits_has_its_companions_once(images):
    model = new_model()
    stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    callbacks = keras.callbacks.CallbackList([stop], add_history=True, model=model)
    counts = []
    for _ in range(2):
        fit(model, images, epochs=1, callbacks=callbacks)
        counts.append(len(callbacks.callbacks))
    assert counts[0] == counts[1] > 2


def numpy(x):
    return np.asarray(ops.convert_to_numpy(x))


def test_swapped_averages_are_refused(images):
    model = new_model()
    swap = keras.callbacks.SwapEMAWeights()
    with pytest.raises(ValueError, match="Leave it out: `generate`"):
        fit(model, images, callbacks=[swap])
    with pytest.raises(ValueError, match="Leave it out: `generate`"):
        model.predict(images, callbacks=[swap], verbose=0)


def test_weights_that_are_set_are_sampled(images):
    model = new_model()
    fit(model, images)
    weights, raw = model.get_weights(), samples(model, "raw")
    fit(model, images)
    assert np.abs(samples(model) - raw).max() > 1e-3
    model.set_weights(weights)
    np.testing.assert_array_equal(samples(model), raw)


def test_averages_that_are_not_loaded_are_said(images, tmp_path):
    model = new_model()
    fit(model, images)
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The file has averages")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        new_model().load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_allclose(samples(loaded), samples(model), atol=1e-6)
    with pytest.warns(UserWarning, match="will sample the raw weights"):
        loaded = keras.models.load_model(tmp_path / "m.keras", compile=False)
    np.testing.assert_allclose(samples(loaded), samples(model, "raw"), atol=1e-6)
    not_compiled = keras_imm.FlowMapModel(small_dit(num_classes=0))
    with pytest.warns(UserWarning, match="will sample the raw weights"):
        not_compiled.load_weights(tmp_path / "m.weights.h5")


def test_averages_of_the_optimizers_inside_of_one(images):
    def averaging(rate):
        return keras.optimizers.Adam(rate, use_ema=True, ema_momentum=0.9)

    one = new_model(optimizer=averaging(1e-2))
    several = new_model(
        optimizer=keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(
                averaging(1e-2), {".*final_layer.*": averaging(1e-2)}
            )
        )
    )
    for model in (one, several):
        fit(model, images)
    np.testing.assert_allclose(samples(several), samples(one), atol=1e-5)
    assert np.abs(samples(several) - samples(several, "raw")).max() > 1e-3


def by_name(**options):
    """A `MultiOptimizer` of a function, which makes its optimizers known late."""
    inner = keras.optimizers.SGD(0.1, **options)
    return keras.optimizers.MultiOptimizer(lambda variable: inner)


def test_optimizers_of_a_function_average_in_float32(images):
    model = new_model(optimizer=by_name(use_ema=True), dtype="bfloat16")
    fit(model, images)
    assert {v.dtype for v in model._all_averages()} == {"float32"}
    assert np.abs(samples(model) - samples(model, "raw")).max() > 0


def test_optimizers_of_a_function_are_checked():
    with pytest.raises(ValueError, match="Use `accumulation_steps`"):
        new_model(optimizer=by_name(gradient_accumulation_steps=2))


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Lamb"])
def test_optimizers_that_bfloat16_stops_are_refused(images, name):
    optimizer = getattr(keras.optimizers, name)
    with pytest.raises(ValueError, match="cannot train weights of bfloat16"):
        fit(new_model(optimizer=optimizer(1e-2), dtype="bfloat16"), images)
    model = new_model(optimizer=optimizer(1e-2, beta_2=0.98), dtype="bfloat16")
    before = samples(model)
    fit(model, images)
    moved = np.abs(samples(model) - before).max()
    assert np.isfinite(moved) and moved > 0


@pytest.mark.parametrize("name", ["Adam", "AdamW", "Nadam", "Lamb", "Adamax", "RAdam"])
def test_optimizers_that_diverge_in_float16_are_refused(images, name):
    own = keras_imm.optimizers if name == "RAdam" else keras.optimizers
    optimizer = getattr(own, name)
    message = r"cannot train weights of float16.*beside epsilon=.*mixed_float16"
    with pytest.raises(ValueError, match=message):
        fit(new_model(optimizer=optimizer(1e-3), dtype="float16"), images)


@pytest.mark.one_backend("JAX multiplies no float16 in full precision on CPUs")
@pytest.mark.parametrize("name", ["Adam", "Nadam", "Lamb"])
def test_float16_with_a_large_epsilon_trains_as_float32_does(images, name):
    losses = []
    for dtype in ("float16", "float32"):
        optimizer = getattr(keras.optimizers, name)(1e-3, epsilon=6e-3)
        model = new_model(optimizer=optimizer, dtype=dtype)
        losses.append(fit(model, images, epochs=12).history["loss"])
    np.testing.assert_allclose(*losses, rtol=0.05)


def test_beta_2_that_float16_rounds_to_1_is_refused(images):
    optimizer = keras.optimizers.Adam(1e-3, beta_2=0.9999, epsilon=0.1)
    with pytest.raises(ValueError, match=r"float16, in which its beta_2=0\.9999 is 1"):
        fit(new_model(optimizer=optimizer, dtype="float16"), images)


@pytest.mark.one_backend("PyTorch's own modules run under PyTorch alone")
def test_averages_of_foreign_modules_are_refused():
    torch = pytest.importorskip("torch")
    if keras.backend.backend() != "torch":
        pytest.skip("PyTorch's own modules run under PyTorch alone")

    class Foreign(keras.layers.Layer):
        data_shape = None

        def __init__(self):
            super().__init__()
            self.inner = keras.layers.TorchModuleWrapper(torch.nn.Linear(2, 2))

        def call(self, inputs):
            return self.inner(inputs[0])

    model = keras_imm.FlowMapModel(Foreign(), "flow_matching")
    model.compile("adam")
    for objective, optimizer in (
        ("flow_matching", keras.optimizers.Adam(use_ema=True)),
        ("shortcut", "adam"),
    ):
        model = keras_imm.FlowMapModel(Foreign(), objective)
        with pytest.raises(ValueError, match="TorchModuleWrapper"):
            model.compile(optimizer)


def test_averages_of_bfloat16_weights_move(images):
    """By the recursion in float64, of the weights after each step."""
    momentum, weights, averages = 0.9999, [], []
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=momentum)
    model = new_model(optimizer=optimizer, dtype="bfloat16")
    kernel = model.backbone.final_layer.projection.kernel
    assert kernel.dtype == "bfloat16"

    def remember(batch, logs):
        model.hold_values()
        average = model._optimizer_averages()[id(kernel)]
        assert average.dtype == "float32"
        weights.append(numpy(ops.cast(kernel, "float32")).astype("float64"))
        averages.append(numpy(average).astype("float64"))

    record = keras.callbacks.LambdaCallback(on_train_batch_end=remember)
    fit(model, images, epochs=3, callbacks=[record])
    # XLA averages what the weight was before it was rounded to bfloat16.
    np.testing.assert_allclose(averages[0], weights[0], atol=4e-3)
    expected = averages[0]
    for value in weights[1:]:
        expected = momentum * expected + (1 - momentum) * value
    moved = np.abs(expected - averages[0]).max()
    assert moved > 1e-6
    assert np.abs(averages[-1] - expected).max() < 0.1 * moved
    assert np.all(np.isfinite(samples(model)))


def test_quantized_weights_are_the_averages(images, tmp_path, monkeypatch):
    # Keras collects all garbage after each weight that it replaces: a minute here.
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    model = new_model()
    fit(model, images)
    before, raw = samples(model), samples(model, "raw")
    model.quantize("int8")
    after = samples(model)
    assert 0 < np.abs(after - before).max() < 0.5 * np.abs(raw - before).max()
    np.testing.assert_array_equal(samples(model, "raw"), after)
    with pytest.raises(ValueError, match="compile"):
        fit(model, images)
    model.save(tmp_path / "int8.keras")
    loaded = keras.models.load_model(tmp_path / "int8.keras")
    np.testing.assert_allclose(samples(loaded), after, atol=1e-6)


def test_layers_quantized_one_by_one_are_refused(images):
    """They are the raw weights', beside averages of the other weights."""
    model = new_model()
    fit(model, images)
    model.backbone.final_layer.projection.quantize("int8")
    for call in (samples, lambda model: fit(model, images)):
        with pytest.raises(ValueError, match="use `quantize` of the model"):
            call(model)
    assert np.all(np.isfinite(samples(model, "raw")))


def test_quantized_targets_are_refused():
    with pytest.raises(ValueError, match="keeps averages"):
        new_model("shortcut").quantize("int8")


def tuned_by_lora(model, images, optimizer):
    start = model.clone_backbone()
    start.final_layer.projection.enable_lora(2)
    tuned = keras_imm.FlowMapModel(start)
    tuned.compile(optimizer)
    np.testing.assert_array_equal(samples(tuned), samples(model))
    fit(tuned, images)
    assert np.abs(samples(tuned) - samples(model)).max() > 1e-4
    return tuned


def test_a_model_with_lora_is_saved_with_its_weights(images, tmp_path):
    model = new_model()
    tuned = tuned_by_lora(model, images, keras.optimizers.Adam(1e-2))
    tuned.save(tmp_path / "lora.keras")
    loaded = keras.models.load_model(tmp_path / "lora.keras")
    np.testing.assert_allclose(samples(loaded), samples(tuned), atol=1e-5)
    assert loaded.backbone.final_layer.projection.lora_rank == 2


def test_a_model_with_lora_is_a_preset_with_its_averages(images, tmp_path):
    optimizer = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9)
    tuned = tuned_by_lora(new_model(), images, optimizer)
    with pytest.raises(ValueError, match="save_to_preset"):
        tuned.save(tmp_path / "lora.keras")
    with pytest.raises(ValueError, match="save_to_preset"):
        tuned.save_weights(tmp_path / "lora.weights.h5")
    with pytest.raises(ValueError, match="save_to_preset"):
        keras.saving.save_model(tuned, tmp_path / "lora.keras")
    tuned.save_to_preset(tmp_path / "lora", dtype="float32")
    loaded = keras_imm.FlowMapModel.from_preset(tmp_path / "lora")
    np.testing.assert_allclose(samples(loaded), samples(tuned), atol=1e-5)
    copy = keras_imm.FlowMapModel(tuned.clone_backbone())
    np.testing.assert_allclose(samples(copy), samples(tuned), atol=1e-5)


def test_weights_that_the_optimizer_does_not_know(images):
    model = new_model()
    fit(model, images)
    before = samples(model)
    model.backbone.final_layer.projection.enable_lora(2)
    np.testing.assert_array_equal(samples(model), before)
    with pytest.raises(ValueError, match="compile it again"):
        fit(model, images)


def test_compiled_functions_notice_other_variables(images):
    model = new_model(optimizer="sgd")
    before = samples(model)
    projection = model.backbone.final_layer.projection
    projection.enable_lora(2)
    projection.lora_kernel_b.assign(np.ones(projection.lora_kernel_b.shape))
    assert np.abs(samples(model) - before).max() > 1e-3


# -- Settings, logs, files and threads


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.mark.any_backend("a setting of Keras")
@pytest.mark.parametrize("kind", ["DiT", "UNet"])
def test_images_are_channels_last_whatever_keras_is_told(kind, channels_first, images):
    backbone = (
        small_dit(num_classes=0)
        if kind == "DiT"
        else keras_imm.backbones.UNet(
            (4, 4, 1), model_channels=4, channel_mult=(1, 1), num_blocks=1
        )
    )
    model = keras_imm.FlowMapModel(backbone)
    model.compile("adam")
    fit(model, images, epochs=1)
    assert samples(model).shape == (4, 4, 4, 1)


def test_csv_logger_has_the_results_of_every_second_epoch(images, tmp_path):
    model = new_model()
    metrics = keras_imm.callbacks.SampleMetrics(
        {"spread": lambda x, _: np.std(x)}, num_samples=4, num_steps=1, freq=2
    )
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, images, epochs=4, callbacks=[metrics, log]).history
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    spread = [row["spread_1_step"] for row in rows]
    assert spread[::2] == ["NA", "NA"]
    np.testing.assert_allclose(np.float64(spread[1::2]), history["spread_1_step"])
    assert len(history["spread_1_step"]) == 2


def test_every_optimizer_of_keras_is_taken():
    several = (lambda variable: keras.optimizers.Nadam(),)
    kinds = {
        name: kind
        for name, kind in vars(keras.optimizers).items()
        if isinstance(kind, type) and issubclass(kind, keras.Optimizer)
    }
    for name in kinds.keys() - {"Optimizer", "LossScaleOptimizer"}:
        given = several if name == "MultiOptimizer" else ()
        assert new_model(optimizer=kinds[name](*given)).optimizer.built
    assert {"Nadam", "Adafactor", "MultiOptimizer"} < kinds.keys()


@pytest.mark.parametrize("arguments", [{"loss": "mse"}, {"metrics": ["mae"]}])
def test_losses_of_keras_are_refused(arguments):
    with pytest.raises(TypeError, match="The loss is the model's `objective`"):
        new_model().compile("adam", **arguments)
    with pytest.raises(TypeError, match="The loss is the model's `objective`"):
        new_model().compile("adam", *arguments.values())


def test_models_that_are_not_compiled_say_so(images):
    model = keras_imm.FlowMapModel(small_dit(num_classes=0))
    with pytest.raises(ValueError, match="`optimizer` must be a Keras optimizer"):
        model.compile(None)
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=r"call `compile\(\)` before"):
            call(images, verbose=0)


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "model"])
def test_files_that_could_not_be_loaded_are_not_written(name, tmp_path):
    with pytest.raises(ValueError, match=r'must end in ".keras"'):
        new_model().save(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m.h5", "m.hdf5"])
def test_files_of_the_old_format_are_not_written_by_another_way(name, tmp_path):
    model = new_model()
    with pytest.raises(ValueError, match=r'must end in ".keras": use `model.save`'):
        keras.saving.save_model(model, tmp_path / name)
    keras.saving.save_model(model, tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(samples(loaded), samples(model), atol=1e-6)


def test_export_points_to_serving(tmp_path):
    with pytest.raises(NotImplementedError, match="export_saved_model"):
        new_model().export(tmp_path / "m.onnx", format="onnx")


def test_sampling_in_a_callback_is_that_of_the_weights_of_that_step(images):
    seen = []
    model = new_model()
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: seen.append(samples(model, "raw"))
    )
    fit(model, images, epochs=1, callbacks=[record])
    assert len(seen) == 2
    np.testing.assert_array_equal(seen[1], samples(model, "raw"))
    assert np.abs(seen[0] - seen[1]).max() > 1e-4


def test_sampling_in_a_thread_while_fit_runs(images):
    model, outcomes = new_model(), []
    samples(model)

    def sample(batch, logs):
        def run():
            try:
                outcomes.append(samples(model))
            except RuntimeError as error:
                outcomes.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()

    record = keras.callbacks.LambdaCallback(on_train_batch_end=sample)
    fit(model, images, epochs=1, callbacks=[record])
    assert len(outcomes) == 2
    for outcome in outcomes:
        if keras.backend.backend() == "jax":
            assert "`fit` is training this model in another thread" in outcome
        else:
            assert np.all(np.isfinite(outcome))
    assert np.all(np.isfinite(samples(model)))
