"""`generate`, `flow_map` and `predict`."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_imm
from keras_imm import samplers


@pytest.fixture
def noise():
    return np.random.default_rng(5).standard_normal((7, 4, 4, 1)).astype("float32")


@pytest.fixture
def count_calls():
    """Counts the Python calls of a backbone: a compiled one is called to trace only."""

    def count(model):
        calls, call = [], model.backbone.call

        def counted(inputs, *args, **kwargs):
            calls.append(inputs[0].shape[0])
            return call(inputs, *args, **kwargs)

        model.backbone.call = counted
        return calls

    return count


def test_pushforward_is_the_flow_map_step_by_step(make_model, noise):
    model = make_model()
    labels = np.arange(7) % 3
    x = noise * 0.5
    for t, s in ((0.994, 0.994 * 2 / 3), (0.994 * 2 / 3, 0.994 / 3), (0.994 / 3, 0.0)):
        x = model.flow_map(x, t, s, labels)
    images = model.generate(labels, num_steps=3, noise=noise)
    np.testing.assert_allclose(images, ops.convert_to_numpy(x), atol=1e-5)
    assert images.dtype == "float32"


def test_seed_repeats_and_its_absence_does_not(make_model):
    model = make_model()
    options = {"labels": [0, 1, 2], "sampler": "restart", "num_steps": 3}
    first = model.generate(seed=3, **options)
    np.testing.assert_array_equal(first, model.generate(seed=3, **options))
    assert np.any(first != model.generate(seed=4, **options))
    assert np.any(model.generate(**options) != model.generate(**options))


def test_seed_leaves_the_models_random_stream_alone(make_model):
    model = make_model()
    state = ops.convert_to_numpy(model.seed_generator.state)
    model.generate([0, 1], seed=0)
    np.testing.assert_array_equal(
        state, ops.convert_to_numpy(model.seed_generator.state)
    )


def test_samples_have_unit_prior_scaled_by_sigma_data(make_model):
    # With the outputs at zero, Euler-FM returns its noise.
    model = make_model()
    for v in model.trainable_variables:
        v.assign(np.zeros(v.shape, "float32"))
    images = model.generate(num_samples=512, seed=0, batch_size=512)
    np.testing.assert_allclose(images.mean(), 0.0, atol=0.02)
    np.testing.assert_allclose(images.std(), 0.5, rtol=0.02)
    assert np.abs(np.corrcoef(images.reshape(512, -1)[:2])[0, 1]) < 0.9


def test_batching_changes_nothing(make_model, noise):
    model = make_model()
    labels = np.arange(7) % 3
    whole = model.generate(labels, noise=noise)
    for batch_size in (2, 3, 7, 100):
        parts = model.generate(labels, noise=noise, batch_size=batch_size)
        np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_every_batch_of_a_large_request_is_different(make_model):
    images = make_model().generate(num_samples=6, batch_size=2, seed=0)
    assert len(np.unique(images.reshape(6, -1), axis=0)) == 6


def test_no_recompilation_for_new_values(make_model, noise, count_calls):
    model = make_model({})
    calls = count_calls(model)
    model.generate([0, 1, 2], num_steps=2, guidance_scale=1.5, seed=0)
    traced = len(calls)
    assert traced >= 1
    model.generate([2, 1, 0], num_steps=5, guidance_scale=3.0, seed=1)
    model.generate([1, 1, 1], num_steps=1, guidance_scale=0.5, weights="raw")
    model.generate([1, 1, 1], num_steps=15, guidance_scale=0.5)
    assert len(calls) == traced
    # This sampler returns to the caller at every step: one jump is compiled for it.
    model.generate([1, 1, 1], guidance_scale=2.0, time_grid="edm", sampler="restart")
    traced = len(calls)
    model.generate([2, 1, 1], num_steps=4, guidance_scale=1.0, sampler="restart")
    assert len(calls) == traced


@pytest.mark.parametrize("num_steps", [15, 16, 40])
def test_grids_of_any_length(make_model, noise, num_steps):
    """The compiled loop is as long as the grid: every jump is there, and no other."""
    model = make_model({})
    x = 0.5 * noise
    times = samplers.uniform_grid(num_steps, model.min_time, model.max_time)
    for t, s in itertools.pairwise(times):
        x = model.flow_map(x, t, s)
    images = model.generate(num_steps=num_steps, noise=noise, verbose=0)
    np.testing.assert_allclose(images, keras.ops.convert_to_numpy(x), atol=1e-4)


def test_no_step_waits_for_the_host(make_model, noise, monkeypatch):
    model = make_model({})
    convert, reads, counts = keras.ops.convert_to_numpy, [], []
    monkeypatch.setattr(
        keras.ops, "convert_to_numpy", lambda x: reads.append(0) or convert(x)
    )
    for num_steps in (1, 8):
        reads.clear()
        model.generate(num_steps=num_steps, noise=noise)
        counts.append(len(reads))
    assert counts[0] == counts[1] >= 1


def test_none_is_the_objectives_own(make_model, noise):
    """For moment matching two uniform steps of the pushforward sampler."""
    model = make_model()
    np.testing.assert_array_equal(
        model.generate(noise=noise),
        model.generate(
            noise=noise, num_steps=2, sampler="pushforward", time_grid="uniform"
        ),
    )

    class Own(keras_imm.objectives.MomentMatching):
        num_steps, sampler, time_grid = 3, "heun", "edm"

    own = keras_imm.FlowMapModel(model.backbone, Own())
    np.testing.assert_array_equal(
        own.generate(noise=noise),
        model.generate(noise=noise, num_steps=3, sampler="heun", time_grid="edm"),
    )


def test_one_draw_may_have_an_axis_of_draws(make_model, noise):
    model = make_model()
    np.testing.assert_array_equal(
        model.generate(noise=noise[None]), model.generate(noise=noise)
    )


def test_with_the_first_draw_alone_the_others_are_the_seeds(make_model, noise):
    model, request = make_model(), {"sampler": "restart", "num_steps": 3}
    first, again, other = (
        model.generate(noise=noise, seed=seed, **request) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_guidance_runs_both_branches_in_one_pass(make_model, noise, count_calls):
    model = make_model({"run_eagerly": True})
    calls = count_calls(model)
    labels = np.arange(7) % 3
    guided = model.generate(labels, num_steps=1, noise=noise, guidance_scale=1.5)
    assert calls == [14]
    with_label = model.generate(labels, num_steps=1, noise=noise)
    without = model.generate(num_steps=1, noise=noise)
    assert calls == [14, 7, 7]
    expected = 1.5 * with_label - 0.5 * without
    np.testing.assert_allclose(guided, expected, atol=1e-5)
    assert np.max(np.abs(with_label - without)) > 1e-2


def test_guidance_scale_one_is_no_guidance(make_model, noise):
    model = make_model()
    labels = np.arange(7) % 3
    np.testing.assert_allclose(
        model.generate(labels, noise=noise, guidance_scale=1.0),
        model.generate(labels, noise=noise),
        atol=1e-5,
    )


def test_the_null_label_is_num_classes(make_model, noise):
    model = make_model()
    np.testing.assert_allclose(
        model.generate(3, noise=noise), model.generate(noise=noise), atol=1e-6
    )


def test_averaged_and_raw_weights(make_model, images, labels, noise):
    model = make_model({})
    model.fit(images, labels, batch_size=16, epochs=2, verbose=0)
    by_default = model.generate(noise=noise)
    np.testing.assert_array_equal(
        by_default, model.generate(noise=noise, weights="ema")
    )
    raw = model.generate(noise=noise, weights="raw")
    assert np.max(np.abs(raw - by_default)) > 1e-3
    # The same, with the averages written into a plain model.
    plain = make_model()
    for v, average in zip(
        plain.trainable_variables,
        model.optimizer._model_variables_moving_average,
        strict=True,
    ):
        v.assign(ops.convert_to_numpy(average))
    np.testing.assert_allclose(by_default, plain.generate(noise=noise), atol=1e-5)

    # `flow_map` makes the same choice.
    raw, averaged, by_default = (
        ops.convert_to_numpy(model.flow_map(noise, 0.9, 0.1, **options))
        for options in ({"weights": "raw"}, {"weights": "ema"}, {})
    )
    np.testing.assert_array_equal(averaged, by_default)
    of_plain = ops.convert_to_numpy(plain.flow_map(noise, 0.9, 0.1))
    np.testing.assert_allclose(averaged, of_plain, atol=1e-5)
    assert np.max(np.abs(raw - averaged)) > 1e-3


def test_predict_samples_labels_in_every_form(make_model, monkeypatch):
    model = make_model({})
    labels = np.arange(5) % 3
    requests, generate = [], model.generate

    def spy(**options):
        requests.append(options)
        return generate(**options)

    monkeypatch.setattr(model, "generate", spy)
    for form in (labels, labels.tolist(), tuple(labels), labels[:, None]):
        requests.clear()
        assert model.predict(form, verbose=0).shape == (5, 4, 4, 1)
        (request,) = requests
        # The default sampler: labels, and nothing that changes what it does.
        np.testing.assert_array_equal(request.pop("labels"), labels)
        assert request == {"batch_size": 32, "verbose": 0}
    assert model.predict_on_batch(labels[:3]).shape == (3, 4, 4, 1)

    requests.clear()
    ends = []
    callback = keras.callbacks.LambdaCallback(
        on_predict_begin=lambda logs: ends.append("begin"),
        on_predict_end=lambda logs: ends.append("end"),
    )
    callback.on_predict_batch_end = lambda i, logs: ends.append(logs["outputs"].shape)
    batches = [(labels[:2],), (labels[2:4],), (labels[4:],)]
    whole = model.predict(iter(batches), batch_size=2, callbacks=[callback])
    assert whole.shape == (5, 4, 4, 1)
    given = [request["labels"] for request in requests]
    np.testing.assert_array_equal(np.concatenate(given), labels)
    assert [request["batch_size"] for request in requests] == [2, 2, 2]
    shapes = [(2, 4, 4, 1), (2, 4, 4, 1), (1, 4, 4, 1)]
    assert ends == ["begin", *shapes, "end"]
    assert model.predict(iter(batches), steps=2, verbose=0).shape == (4, 4, 4, 1)


def test_predict_of_an_unconditional_model_starts_from_the_noise_given(
    make_model, noise
):
    model = make_model({}, num_classes=0)
    np.testing.assert_allclose(
        model.predict(noise, verbose=0), model.generate(noise=noise), atol=1e-6
    )


def test_the_last_batch_needs_no_compilation_of_its_own(make_model, count_calls):
    model = make_model({})
    calls = count_calls(model)
    model.generate([0, 1, 2], batch_size=3, seed=0)
    traced = len(calls)
    model.generate(np.arange(7) % 3, batch_size=3, seed=0)
    assert len(calls) == traced


def test_progress_bar_on_long_requests(make_model, capsys):
    model = make_model()
    model.generate(num_samples=2, num_steps=2)
    assert capsys.readouterr().out == ""
    model.generate(num_samples=20, num_steps=4, batch_size=2)
    assert "40/40" in capsys.readouterr().out
    model.generate(num_samples=20, num_steps=4, batch_size=2, verbose=0)
    assert capsys.readouterr().out == ""


def test_number_of_samples(make_model):
    model = make_model()
    assert model.generate().shape == (1, 4, 4, 1)
    assert model.generate(2).shape == (1, 4, 4, 1)
    assert model.generate(2, num_samples=3).shape == (3, 4, 4, 1)
    assert model.generate([2, 1]).shape == (2, 4, 4, 1)


def test_flow_map_at_s_equal_to_t_is_the_identity(make_model, noise):
    model = make_model()
    out = model.flow_map(noise, 0.5, 0.5)
    np.testing.assert_array_equal(ops.convert_to_numpy(out), noise)


def test_second_time(make_model, noise):
    eager = {"run_eagerly": True}
    seen = []
    for one in (make_model({**eager}), make_model({**eager}, second_time="stride")):
        call = one.backbone.call

        def spy(inputs, *args, call=call, **kwargs):
            seen.append([ops.convert_to_numpy(c)[0] for c in inputs[1:3]])
            return call(inputs, *args, **kwargs)

        one.backbone.call = spy
        one.flow_map(noise, 0.75, 0.5)
    np.testing.assert_allclose(seen, [[750.0, 500.0], [750.0, 250.0]], rtol=1e-6)


def test_float64_stays_float64(make_model, noise, backend):
    if backend == "jax":
        pytest.skip("JAX has no float64 unless JAX_ENABLE_X64 is set")
    out = make_model().flow_map(noise.astype("float64"), 0.75, 0.25)
    assert keras.backend.standardize_dtype(out.dtype) == "float64"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [0, 4]}, r"`labels` must be in \[0, 3\].*null label.*Received: 4"),
        ({"labels": [-1]}, r"`labels` must be in \[0, 3\].*Received: -1"),
        ({"labels": [0.5]}, r"`labels` must be integers.*float64"),
        ({"labels": [[1]]}, r"`labels` must be .*shape \(1, 1\)"),
        ({"labels": [0, 1], "num_samples": 3}, r"must agree.*'labels': 2"),
        ({"num_samples": 0}, r"`num_samples` must be an integer of at least 1.*=0"),
        ({"num_steps": 0}, r"`num_steps` must be an integer of at least 1.*=0"),
        ({"num_steps": 8, "time_grid": [1.4]}, r"makes 2 steps.*num_steps=8"),
        ({"time_grid": "cosine"}, r"`time_grid` must be one of 'uniform', 'edm'"),
        ({"time_grid": [1.0, 2.0]}, r"`time_grid` as a list must hold falling"),
        ({"sampler": "ddim"}, r"`sampler` must be one of 'pushforward', 'restart'"),
        ({"weights": "mean"}, r"`weights` must be one of 'ema', 'raw'.*'mean'"),
        ({"seed": -3}, r"`seed` must be an integer of at least 0.*=-3"),
        ({"batch_size": 0}, r"`batch_size` must be an integer of at least 1.*=0"),
        ({"guidance_scale": float("nan")}, r"`guidance_scale` must be .*=nan"),
        ({"guidance_scale": "a"}, r"`guidance_scale` must be a finite number.*='a'"),
        ({"guidance_scale": [1.0, 2.0]}, r"`guidance_scale` must be a finite.*2.0\]"),
        ({"noise": np.zeros((2, 3, 3, 1))}, r"`noise` must have shape.*\(2, 3, 3, 1\)"),
        (
            {"noise": np.zeros((2, 5, 4, 4, 1)), "sampler": "restart", "num_steps": 3},
            r"all draws \(3, num_samples, 4, 4, 1\).*\(2, 5, 4, 4, 1\)",
        ),
        (
            {"noise": np.zeros((1, 5, 4, 4, 1)), "num_samples": 4},
            r"must agree on a positive number.*'noise': 5",
        ),
        ({"guidance_interval": (0.1, 0.9)}, r"limits a `guidance_scale`"),
    ],
)
def test_generate_errors(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model().generate(**arguments)


def test_unconditional_errors(make_model):
    model = make_model(num_classes=0)
    with pytest.raises(ValueError, match=r"unconditional .*labels=1"):
        model.generate(1)
    with pytest.raises(ValueError, match=r"`guidance_scale` needs .*=2.0"):
        model.generate(guidance_scale=2.0)


@pytest.mark.parametrize(
    ("t", "s", "message"),
    [
        (0.2, 0.5, r"Times must satisfy s <= t"),
        (1.5, 0.5, r"`t` must be in \[0, 1\].*1.5"),
        (0.5, -0.1, r"`s` must be in \[0, 1\].*-0.1"),
        (np.array([0.5, 0.1]), np.array([0.2, 0.2]), r"Times must satisfy s <= t"),
    ],
)
def test_flow_map_errors(make_model, t, s, message):
    with pytest.raises(ValueError, match=message):
        make_model().flow_map(np.zeros((2, 4, 4, 1), "float32"), t, s)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t": np.full(3, 0.5)}, r"`t` must be a scalar or of shape.*\(3,\)"),
        ({"s": np.zeros(1)}, r"`s` must be a scalar or of shape.*\(1,\)"),
        ({"labels": [0, 1, 2]}, r"`labels` must be a scalar or of shape.*\(3,\)"),
    ],
)
def test_flow_map_needs_one_of_each_per_sample(make_model, arguments, message):
    arguments = {"t": 0.5, "s": 0.0, "labels": None} | arguments
    with pytest.raises(ValueError, match=message):
        make_model().flow_map(np.zeros((2, 4, 4, 1), "float32"), **arguments)


def test_flow_map_takes_one_label_for_all(make_model, noise):
    model = make_model()
    for scale in (None, 1.5):
        np.testing.assert_allclose(
            *(
                ops.convert_to_numpy(model.flow_map(noise, 0.5, 0.1, labels, scale))
                for labels in (1, np.ones(7, "int32"))
            ),
            atol=1e-6,
        )
