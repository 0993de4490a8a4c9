"""The model as a Keras user meets it: fit, evaluate, compile options, random state."""

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm


def weights_of(model):
    return [ops.convert_to_numpy(v) for v in model.trainable_variables]


def averages_of(model):
    """The optimizer's averages of the trainable weights, or these themselves."""
    values = model.weights_for_sampling("ema")
    averages = {id(v): a for v, a in zip(model.flow.variables, values, strict=True)}
    return [ops.convert_to_numpy(averages[id(v)]) for v in model.trainable_variables]


def assert_all_close(a, b, **tolerances):
    for left, right in zip(a, b, strict=True):
        np.testing.assert_allclose(left, right, **tolerances)


def differ(a, b):
    return any(np.any(left != right) for left, right in zip(a, b, strict=True))


def fit(model, images, labels, **options):
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0} | options
    return model.fit(images, labels, **options)


# -- Loss


def test_history_is_the_mean_of_the_batch_losses(make_model, images, labels):
    history = fit(make_model({}), images, labels, epochs=1).history["loss"]
    model = make_model({})
    losses = [
        model.train_on_batch(images[rows], labels[rows])
        for rows in (slice(0, 16), slice(16, 32))
    ]
    assert min(losses) > 0.0
    np.testing.assert_allclose(history, [np.mean(losses)], rtol=1e-5)


def test_training_lowers_the_loss_of_the_same_particles(make_model, images, labels):
    model = make_model({"optimizer": keras.optimizers.Adam(1e-3)}, label_dropout=0.0)
    before = model.evaluate(images, labels, batch_size=16, verbose=0)
    fit(model, images, labels, epochs=15)
    assert model.evaluate(images, labels, batch_size=16, verbose=0) < before


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_adam_squares_the_whole_gradient_of_a_repeated_label(
    make_model, images, labels, accumulation_steps
):
    optimizer = keras.optimizers.Adam(1e-3, beta_1=0.9, beta_2=0.99, epsilon=1e-8)
    model = make_model({"optimizer": optimizer}, accumulation_steps=accumulation_steps)
    model.train_on_batch(images, labels)
    table = model.backbone.label_embedding.embeddings
    (index,) = (i for i, v in enumerate(model.trainable_variables) if v is table)
    momentum = ops.convert_to_numpy(optimizer._momentums[index]) / (1 - 0.9)
    velocity = ops.convert_to_numpy(optimizer._velocities[index]) / (1 - 0.99)
    assert np.abs(momentum).max() > 0
    np.testing.assert_allclose(velocity, momentum**2, rtol=1e-4)


def test_the_target_pass_records_nothing(
    make_model, images, labels, backend, monkeypatch
):
    if backend == "jax":
        pytest.skip("JAX records nothing while it runs; the gradient is tested above")
    model = make_model({"run_eagerly": True})
    recording = []
    if backend == "torch":
        import torch

        is_recording = torch.is_grad_enabled
    else:
        import tensorflow as tf

        tapes = []
        enter, leave = tf.GradientTape.__enter__, tf.GradientTape.__exit__
        monkeypatch.setattr(
            tf.GradientTape, "__enter__", lambda t: tapes.append(t) or enter(t)
        )
        monkeypatch.setattr(
            tf.GradientTape, "__exit__", lambda t, *a: tapes.pop() and leave(t, *a)
        )

        def is_recording():
            return bool(tapes)

    def watched(method):
        def spy(*args, **kwargs):
            recording.append(is_recording())
            return method(*args, **kwargs)

        return spy

    for name in ("target", "loss"):
        watch = watched(getattr(model.objective, name))
        monkeypatch.setattr(model.objective, name, watch)
    model.train_on_batch(images, labels)
    assert recording == [False, True]


def test_the_optimizer_scales_the_loss(make_model, images, labels):
    trained = []
    for scale in (None, 1024.0):
        optimizer = keras.optimizers.SGD(1.0)
        if scale:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, scale)
        model = make_model({"optimizer": optimizer})
        before = weights_of(model)
        model.train_on_batch(images, labels)
        trained.append(weights_of(model))
    assert_all_close(*trained, atol=1e-6)
    assert max(np.max(np.abs(a - b)) for a, b in zip(before, trained[0])) > 1e-4  # noqa: B905


# -- Raw weights and averages


def test_averages_follow_their_recurrence_and_weights_stay_raw(
    make_model, images, labels
):
    model = make_model({})
    expected = None
    for _ in range(3):
        model.train_on_batch(images, labels)
        weights = weights_of(model)
        expected = (
            weights
            if expected is None
            else [
                0.9 * average + 0.1 * weight
                for average, weight in zip(expected, weights, strict=True)
            ]
        )
    assert_all_close(averages_of(model), expected, rtol=1e-4, atol=1e-6)
    assert differ(averages_of(model), weights_of(model))


def test_fit_leaves_the_weights_raw(make_model, images, labels):
    # An epsilon above what is rounded in gradients that would be 0, as of keys' biases.
    averaging, plain = (
        make_model({"optimizer": keras.optimizers.Adam(1e-2, epsilon=1e-3, **ema)})
        for ema in ({"use_ema": True, "ema_momentum": 0.9}, {})
    )
    for model in (averaging, plain):
        fit(model, images, labels)
        fit(model, images, labels)
    assert_all_close(weights_of(averaging), weights_of(plain), rtol=1e-5, atol=1e-6)
    assert differ(averages_of(averaging), weights_of(averaging))


def test_averages_before_the_first_step_are_the_weights(make_model):
    model = make_model({})
    assert_all_close(averages_of(model), weights_of(model))


def test_a_fit_that_fails_leaves_the_optimizer_as_it_was(make_model, images, labels):
    model = make_model({})
    with pytest.raises(ValueError, match="multiple of `group_size`"):
        fit(model, images[:22], labels[:22])
    assert "finalize_variable_values" not in vars(model.optimizer)


def test_averages_under_loss_scaling(make_model, images, labels):
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(1.0, use_ema=True, ema_momentum=0.9)
    )
    model = make_model({"optimizer": optimizer})
    fit(model, images, labels)
    assert differ(averages_of(model), weights_of(model))


def test_fit_evaluate_predict_save_fit(make_model, images, labels, tmp_path):
    model = make_model({})
    fit(model, images, labels)
    weights, averages = weights_of(model), averages_of(model)
    assert np.isfinite(model.evaluate(images, labels, batch_size=16, verbose=0))
    assert model.predict(labels, verbose=0).shape == images.shape
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    assert_all_close(weights_of(model), weights)
    assert_all_close(averages_of(model), averages)
    history = fit(model, images, labels)
    assert np.all(np.isfinite(history.history["loss"]))
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 8
    assert differ(weights_of(model), weights)
    assert np.isfinite(model.evaluate(images, labels, batch_size=16, verbose=0))
    model.save(tmp_path / "again.keras")


# -- Accumulation


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_accumulation_is_one_large_batch(make_model, images, labels, dropout):
    # Dropout masks are drawn per micro-batch, so only their absence is compared.
    def trained(accumulation_steps):
        optimizer = keras.optimizers.Adam(
            1e-2, epsilon=1e-8, global_clipnorm=0.01, use_ema=True, ema_momentum=0.9
        )
        model = make_model(
            {"optimizer": optimizer},
            accumulation_steps=accumulation_steps,
            dropout=dropout,
        )
        history = fit(model, images, labels, batch_size=32)
        return model, history.history["loss"]

    (one, one_loss), (four, four_loss) = trained(1), trained(4)
    assert int(ops.convert_to_numpy(four.optimizer.iterations)) == 2
    if dropout:
        assert np.all(np.isfinite(four_loss))
        return
    np.testing.assert_allclose(four_loss, one_loss, rtol=1e-5)
    assert_all_close(weights_of(four), weights_of(one), rtol=1e-4, atol=2e-5)
    assert_all_close(averages_of(four), averages_of(one), rtol=1e-4, atol=2e-5)


def test_accumulated_gradients_are_averaged(make_model, images, labels):
    """Adam and clipping by norm would hide a factor; plain descent does not."""
    one, four = (
        make_model(
            {"optimizer": keras.optimizers.SGD(0.3, use_ema=True, ema_momentum=0.9)},
            accumulation_steps=steps,
        )
        for steps in (1, 4)
    )
    before = weights_of(one)
    for model in (one, four):
        fit(model, images, labels, batch_size=32)
    assert_all_close(weights_of(four), weights_of(one), atol=1e-5)
    assert_all_close(averages_of(four), averages_of(one), atol=1e-5)
    largest = max(
        np.max(np.abs(a - b)) for a, b in zip(before, weights_of(one), strict=True)
    )
    assert largest > 1e-2


@pytest.mark.parametrize("scaled", [False, True])
def test_optimizer_must_not_accumulate(make_model, scaled):
    optimizer = keras.optimizers.Adam(1e-3, gradient_accumulation_steps=2)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    with pytest.raises(ValueError, match=r"Use `accumulation_steps` of IMM.*=2"):
        make_model({"optimizer": optimizer})


def test_another_number_of_parts_is_taken_from_the_next_step(
    make_model, images, labels
):
    def trained(steps, then):
        optimizer = keras.optimizers.SGD(0.3)
        model = make_model({"optimizer": optimizer}, accumulation_steps=steps)
        parts, own_loss = [], model.objective.loss

        def loss(network, particles, target):
            parts.append(particles.t.shape[0])
            return own_loss(network, particles, target)

        model.objective.loss = loss
        for number in (steps, then):
            model.accumulation_steps = number
            fit(model, images, labels, batch_size=32)
        return model, set(parts)

    model, parts = trained(1, 4)
    assert model.accumulation_steps == 4
    assert parts == {32, 8}
    with pytest.raises(ValueError, match=r"`accumulation_steps` must .*=0"):
        model.accumulation_steps = 0


def test_accumulation_with_a_backbone_that_is_not_built(images):
    model = keras_imm.IMM(LazyBackbone(), accumulation_steps=2)
    model.compile(keras.optimizers.SGD(0.1))
    assert model.fit(images, batch_size=16, verbose=0).history["loss"][0] > 0


def test_training_that_is_interrupted_keeps_its_last_step(make_model, images, labels):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                raise KeyboardInterrupt

    interrupted, whole = make_model({}), make_model({})
    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, images, labels, batch_size=8, callbacks=[Interrupt()])
    fit(whole, images[:16], labels[:16], batch_size=8, epochs=1)
    assert_all_close(weights_of(interrupted), weights_of(whole), atol=1e-6)
    assert_all_close(averages_of(interrupted), averages_of(whole), atol=1e-6)


# -- Random state


def test_seed_makes_training_repeatable(make_model, images, labels):
    runs = []
    for seed in (0, 0, 1):
        model = make_model({}, seed=seed, dropout=0.1)
        fit(model, images, labels)
        runs.append(weights_of(model))
    assert not differ(runs[0], runs[1])
    assert differ(runs[0], runs[2])


def test_neighbouring_seeds_share_no_draws(make_model, images, labels):
    def times(seed, draws):
        model = make_model(seed=seed)
        return [
            ops.convert_to_numpy(
                model.batch_loss()
                .draw((images, labels), ops.convert_to_tensor(0))
                .particles.t
            )
            for _ in range(draws)
        ]

    first = np.concatenate(times(0, 6))
    second = np.concatenate(times(1, 6))
    assert not np.intersect1d(first, second).size


def test_evaluate_gives_the_same_loss_for_the_same_seed(make_model, images, labels):
    def evaluate(model):
        return model.evaluate(images, labels, batch_size=16, verbose=0)

    model = make_model({})
    assert evaluate(model) == evaluate(model) == evaluate(make_model({}))
    assert evaluate(model) != evaluate(make_model({}, seed=1))


def test_evaluation_has_no_dropout_and_draws_of_its_own(
    make_model, images, labels, monkeypatch
):
    losses = [
        make_model({}, dropout=rate, label_dropout=p).evaluate(
            images, labels, batch_size=16, verbose=0
        )
        for rate, p in ((0.0, 0.0), (0.5, 1.0))
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    model = make_model({})
    drawn, draw = [], model.objective.draw

    def spy(*args):
        particles = draw(*args)
        drawn.append(ops.convert_to_numpy(particles.t))
        return particles

    monkeypatch.setattr(model.objective, "draw", spy)
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model.evaluate(images, labels, batch_size=32, verbose=0)
    model.train_on_batch(images, labels)
    evaluated, trained = drawn
    assert not np.intersect1d(evaluated, trained).size


def test_validation_does_not_disturb_training(make_model, images, labels):
    plain, validated = make_model({}), make_model({})
    fit(plain, images, labels)
    history = fit(validated, images, labels, validation_data=(images, labels))
    assert not differ(weights_of(plain), weights_of(validated))
    assert len(history.history["val_loss"]) == 2


# -- What Keras's own parts do


def test_steps_per_execution(make_model, images, labels, backend):
    grouped = make_model({"steps_per_execution": 2})
    if backend == "torch":
        with pytest.raises(ValueError, match="steps_per_execution"):
            fit(grouped, images, labels)
        return
    # Adam would make a large step of a rounding error.
    for model in (single := make_model(), grouped):
        model.compile(
            keras.optimizers.SGD(0.1),
            steps_per_execution=1 if model is single else 2,
        )
        fit(model, images, labels)
    assert_all_close(weights_of(single), weights_of(grouped), atol=1e-6)


def test_run_eagerly(make_model, images, labels):
    eager, compiled = make_model(), make_model()
    for model in (eager, compiled):  # Adam would make a large step of a rounding error
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=model is eager)
    losses = [
        fit(model, images, labels, epochs=1).history["loss"]
        for model in (eager, compiled)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    noise = images[:2]
    np.testing.assert_allclose(
        eager.generate(labels=labels[:2], noise=noise),
        compiled.generate(labels=labels[:2], noise=noise),
        atol=1e-4,
    )


def test_jit_compile(make_model, images, labels, backend):
    if backend == "torch":
        pytest.skip(
            "slow: tests/trainers/test_torch_graphs.py does it for PyTorch, once"
        )
    # XLA may draw other random numbers from a seed, so fixed noise is compared.
    fast, plain = make_model({"jit_compile": True}), make_model({})
    np.testing.assert_allclose(
        fast.generate(labels, noise=images),
        plain.generate(labels, noise=images),
        atol=1e-5,
    )
    before = weights_of(fast)
    history = fit(fast, images, labels)
    assert fast.jit_compile
    assert np.all(np.isfinite(history.history["loss"]))
    assert differ(before, weights_of(fast))


def test_compile_arguments_reach_keras(make_model, images, labels):
    model = make_model({})
    assert not model.run_eagerly
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    assert model.run_eagerly
    # What was compiled before is not used any more.
    calls, call = [], model.backbone.call

    def spy(*args, **kwargs):
        calls.append(0)
        return call(*args, **kwargs)

    model.backbone.call = spy
    for _ in range(2):
        model.generate(labels[:2], num_steps=3, seed=0)
    assert len(calls) == 6


def test_the_model_takes_the_precision_of_its_backbone():
    backbone = small_dit(dtype="mixed_float16")
    scaled = keras_imm.IMM(backbone)
    scaled.compile(keras.optimizers.SGD(0.1))
    assert isinstance(scaled.optimizer, keras.optimizers.LossScaleOptimizer)
    scaled.compile(keras.optimizers.SGD(0.1), auto_scale_loss=False)
    assert not isinstance(scaled.optimizer, keras.optimizers.LossScaleOptimizer)


def test_learning_rate_schedules_and_clipping(make_model, images, labels):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.0, 1e-2])
    model = make_model({"optimizer": keras.optimizers.SGD(schedule, clipvalue=1e-9)})
    before = weights_of(model)
    fit(model, images, labels)
    assert_all_close(weights_of(model), before, atol=1e-10 * 4, rtol=1e-7)


def test_summary_counts_the_backbone(make_model):
    lines = []
    model = make_model({})
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert f"{model.count_params():,}" in "\n".join(lines)
    assert model.count_params() > 1000


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(make_model, images, labels, policy, backend):
    if policy == "mixed_float16" and backend == "jax":
        pytest.skip("JAX has no float16 attention on the CPU")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = make_model({})
        history = fit(model, images, labels, epochs=1)
    finally:
        keras.config.set_dtype_policy(before)
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    assert np.all(np.isfinite(history.history["loss"]))
    assert all(np.all(np.isfinite(w)) for w in weights_of(model))
    samples = model.generate(labels=labels[:4], noise=images[:4])
    assert samples.dtype == "float32"
    assert np.all(np.isfinite(samples))


# -- Data


def test_unconditional_training(make_model, images):
    model = make_model({}, num_classes=0)
    history = model.fit(images, batch_size=16, verbose=0)
    assert history.history["loss"][0] > 0
    assert model.predict(images[:5], verbose=0).shape == (5, 4, 4, 1)


def test_vectors_and_a_backbone_of_ones_own(tmp_path):
    x, c_t, c_s = (keras.Input((2,)), keras.Input(()), keras.Input(()))
    times = [keras.layers.Reshape((1,))(c / 1000.0) for c in (c_t, c_s)]
    hidden = keras.layers.Dense(16, "silu")(keras.layers.concatenate([x, *times]))
    backbone = keras.Model([x, c_t, c_s], keras.layers.Dense(2)(hidden))
    model = keras_imm.IMM(backbone)
    model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    data = np.random.default_rng(0).normal(size=(64, 2)).astype("float32")
    assert model.fit(data, batch_size=32, verbose=0).history["loss"][0] > 0
    samples = model.generate(num_samples=7, num_steps=1, seed=0)
    assert samples.shape == (7, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = loaded.generate(num_samples=7, num_steps=1, seed=0)
    np.testing.assert_allclose(again, samples, atol=1e-6)


@keras.saving.register_keras_serializable(package="tests")
class LazyBackbone(keras.layers.Layer):
    """Knows the shape of the data only when it sees them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten = keras.layers.Flatten()

    def build(self, input_shape):
        self.dense = keras.layers.Dense(int(np.prod(input_shape[0][1:])))
        self.dense.build((None, int(np.prod(input_shape[0][1:]))))

    def call(self, inputs, training=False):
        x = inputs[0]
        return ops.reshape(self.dense(self.flatten(x)), ops.shape(x))


def test_a_backbone_that_learns_the_shape_from_the_data(images, tmp_path):
    model = keras_imm.IMM(LazyBackbone())
    model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    with pytest.raises(ValueError, match="shape of the data is not known"):
        model.generate(num_samples=2)
    assert model.fit(images, batch_size=16, verbose=0).history["loss"][0] > 0
    samples = model.generate(num_samples=2, seed=0)
    assert samples.shape == (2, 4, 4, 1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.generate(num_samples=2, seed=0), samples)


def test_num_classes_as_an_attribute_of_a_functional_model(labels, images, tmp_path):
    x, c_t, c_s = keras.Input((4, 4, 1)), keras.Input(()), keras.Input(())
    label = keras.Input((), dtype="int32")
    times = [keras.layers.Reshape((1,))(c / 1000.0) for c in (c_t, c_s)]
    hidden = keras.layers.concatenate([keras.layers.Flatten()(x), *times])
    hidden = keras.layers.Dense(16)(hidden) + keras.layers.Embedding(4, 16)(label)
    output = keras.layers.Reshape((4, 4, 1))(hidden)
    backbone = keras.Model([x, c_t, c_s, label], output)
    backbone.num_classes = 3
    model = keras_imm.IMM(backbone)
    model.compile(keras.optimizers.SGD(0.1))
    fit(model, images, labels)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        loaded.generate(labels, noise=images),
        model.generate(labels, noise=images),
        atol=1e-6,
    )
    assert np.any(model.generate(0, noise=images) != model.generate(1, noise=images))


def test_integer_images_are_refused(make_model, labels):
    model = make_model({})
    with pytest.raises(ValueError, match=r"must be floating point.*uint8"):
        fit(model, np.zeros((32, 4, 4, 1), "uint8"), labels)


def test_a_conditional_model_needs_labels(make_model, images):
    model = make_model({})
    with pytest.raises(ValueError, match=r"num_classes=3: data must be"):
        fit(model, images, None)


def test_labels_are_one_integer_per_image(make_model, images, labels):
    as_column = make_model({})
    plain = make_model({})
    fit(as_column, images, labels[:, None].astype("int64"))
    fit(plain, images, labels)
    assert not differ(weights_of(as_column), weights_of(plain))
    for wrong in (labels.astype("float32"), np.eye(3, dtype="int32")[labels]):
        with pytest.raises(ValueError, match="Labels must be integers of shape"):
            fit(make_model({}), images, wrong)


def test_an_unconditional_model_takes_no_notice_of_labels(make_model, images, labels):
    models = [make_model({}, num_classes=0) for _ in range(2)]
    fit(models[0], images, labels)
    fit(models[1], images, None)
    assert not differ(*map(weights_of, models))


def test_sample_weights_are_refused(make_model, images, labels):
    model = make_model({})
    with pytest.raises(ValueError, match="No sample weights"):
        fit(model, images, labels, sample_weight=np.ones(32))


def test_the_model_called_on_x_alone_goes_from_the_last_time_to_the_first(
    make_model, images
):
    model = make_model(min_time=0.1, max_time=0.9)
    np.testing.assert_array_equal(
        *(
            ops.convert_to_numpy(model(*args))
            for args in [(images,), (images, 0.9, 0.1)]
        )
    )
