"""What every objective must do."""

import json

import keras
import numpy as np
import pytest
from backends import computed, value_and_gradient
from keras import ops
from small_dit import small_dit

import keras_imm
from contracts.serializable import SerializableContract
from keras_imm.backend.attention import in_forward_mode
from keras_imm.backend.random_streams import random_states
from keras_imm.objectives import Objective
from keras_imm.samplers import SamplingPlan

RUNS = 4  # of rows that stay together, in a batch
STEP = 3


def numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.stop_gradient(x)))


def tensors(data):
    return tuple(map(ops.convert_to_tensor, data))


def compiled_draw(batch_loss, data, step):
    """What `draw` returns in a compiled function of the backend."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(batch_loss.draw)(data, step)
    if keras.backend.backend() == "jax":
        import jax

        states = batch_loss.random_states()

        def draw(values, data, step):
            mapping = list(zip(states, values, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return batch_loss.draw(data, step)

        return jax.jit(draw)([state.value for state in states], data, step)
    return batch_loss.draw(data, step)  # PyTorch's steps draw outside of their graphs


def new_model(
    objective, num_classes=3, network=None, seed=0, run_eagerly=False, **options
):
    """A small model, with random weights of which none is zero.

    Args:
        network: Arguments of its DiT.
        run_eagerly: Whether it trains without a graph.
        options: Arguments of the model.
    """
    backbone = small_dit(num_classes=num_classes, **(network or {}))
    options = {"seed": seed, **options}
    model = keras_imm.FlowMapModel(backbone, objective=objective, **options)
    rng = np.random.default_rng(7)
    for v in model.backbone.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    model.compile(keras.optimizers.SGD(1e-3), run_eagerly=run_eagerly)
    return model


# Graphs take seconds to make; so do, under JAX, operations one by one.
EAGERLY = keras.backend.backend() != "jax"


def quick_model(objective, **options):
    """As `new_model`, for tests to which it is the same how it trains."""
    return new_model(objective, run_eagerly=EAGERLY, **options)


def loss_of(batch_loss, batch, step):
    """The loss of a batch, and what is logged beside it."""
    return computed(
        lambda: batch_loss.loss(batch, batch_loss.target(batch, step), step)
    )


class ObjectiveContract(SerializableContract):
    """`make()` returns a `keras_imm.objectives.Objective`."""

    @pytest.fixture
    def objective(self, instance):
        assert isinstance(instance, Objective)
        instance.total_steps = instance.total_steps or 10
        return instance

    @pytest.fixture
    def data(self, objective):
        rows = RUNS * objective.rows_together
        rng = np.random.default_rng(1)
        x = 0.5 * rng.standard_normal((rows, 4, 4, 1)).astype("float32")
        return x, (np.arange(rows) % 3).astype("int32")

    @pytest.fixture
    def drawn(self, objective, data):
        """The loss of batches, one of these, and the optimizer's steps."""
        step = ops.convert_to_tensor(STEP, "int32")
        batch_loss = new_model(objective).batch_loss()
        return batch_loss, batch_loss.draw(tensors(data), step), step

    def test_registered_outside_of_the_schedules_package(self, objective):
        kind = type(objective)
        package = keras.saving.get_registered_name(kind).split(">")[0]
        if kind.__module__.startswith("keras_imm."):
            assert package == "keras_imm.objectives"
        else:
            assert not package.startswith("keras_imm")

    def test_attributes(self, objective):
        assert objective.rows_together >= 1
        assert objective.network_passes >= 3.0
        assert all(0 <= momentum < 1 for momentum in objective.averages.values())
        assert 0 <= objective.label_dropout <= 1
        known = {"schedule", "parameterization", "second_time", "time_scale"}
        assert set(objective.flow_map) <= known | {"min_time", "max_time"}

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("num_classes", [0, 3])
    def test_particles_have_the_batch_as_their_first_axis(
        self, objective, data, num_classes, training
    ):
        if not num_classes and getattr(objective, "_guides", False):
            pytest.skip("it guides to labels")
        model = new_model(objective, num_classes)
        step = ops.convert_to_tensor(STEP, "int32") if training else None
        batch = model.batch_loss().draw(tensors(data), step, training=training)
        fields = batch.particles._asdict()
        assert any(field is not None for field in fields.values())
        for name, field in fields.items():
            if field is not None:
                assert field.shape[0] == len(data[0]), name
                assert np.all(np.isfinite(numpy(field))), name

    def test_draws_follow_the_seed(self, objective, data):
        step = ops.convert_to_tensor(STEP, "int32")
        drawn = []
        for seed in (0, 0, 1):
            batch_loss = new_model(objective, seed=seed).batch_loss()
            drawn += [batch_loss.draw(tensors(data), step).particles for _ in range(2)]

        def differ(a, b):
            pairs = zip(a, b, strict=True)
            return any(x is not None and np.any(numpy(x) != numpy(y)) for x, y in pairs)

        first, second, again, _, other, _ = drawn
        assert not differ(first, again)
        assert differ(first, second)
        assert differ(first, other)

    def test_draws_of_a_compiled_step_are_those_of_a_call(self, objective, data):
        """Graphs are rewritten, and their arithmetic may differ in the last digit."""
        step = ops.convert_to_tensor(STEP, "int32")
        called, compiled = (
            function(new_model(objective).batch_loss(), tensors(data), step)
            for function in (lambda loss, *given: loss.draw(*given), compiled_draw)
        )
        for name, field in called.particles._asdict().items():
            if field is not None:
                np.testing.assert_allclose(
                    *(numpy(getattr(p.particles, name)) for p in (called, compiled)),
                    **{"rtol": 1e-4, "atol": 1e-5, "err_msg": name},
                )

    def test_micro_batches_are_whole_runs_and_cover_the_batch(self, objective, data):
        model = new_model(objective, accumulation_steps=2)
        step = ops.convert_to_tensor(STEP, "int32")
        batch = model.batch_loss().draw(tensors(data), step)
        parts = [model.batch_loss().micro_batch(batch, i) for i in range(2)]
        for name, field in batch.particles._asdict().items():
            if field is None:
                assert all(getattr(part.particles, name) is None for part in parts)
                continue
            runs = numpy(field).reshape(RUNS, objective.rows_together, -1)
            found = [numpy(getattr(part.particles, name)) for part in parts]
            halves = [
                half.reshape(RUNS // 2, objective.rows_together, -1) for half in found
            ]
            for i, run in enumerate(runs):
                np.testing.assert_array_equal(halves[i % 2][i // 2], run, err_msg=name)

    def test_the_loss_is_a_finite_scalar(self, drawn):
        loss, others = loss_of(*drawn)
        assert tuple(loss.shape) == ()
        assert np.isfinite(numpy(loss))
        for name, value in others.items():
            assert tuple(ops.shape(value)) == (), name
            assert np.isfinite(numpy(value)), name

    def test_the_loss_of_a_batch_is_the_mean_of_its_parts(self, objective, data):
        model = new_model(objective, accumulation_steps=2)
        batch_loss, step = model.batch_loss(), ops.convert_to_tensor(STEP, "int32")
        batch = batch_loss.draw(tensors(data), step)

        whole, *parts = (
            numpy(loss_of(batch_loss, part, step)[0])
            for part in (batch, *(batch_loss.micro_batch(batch, i) for i in range(2)))
        )
        np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-4)

    def test_the_loss_has_a_gradient_and_its_target_has_none(self, drawn):
        batch_loss, batch, step = drawn
        variable = batch_loss.flow_map.backbone.final_layer.projection.kernel
        start = ops.convert_to_numpy(variable)

        def with_weight(function):
            def call(value):
                with keras.StatelessScope(state_mapping=[(variable, value)]):
                    return function() + 0.0 * ops.sum(value)

            return value_and_gradient(call, start)[1]

        def target():
            leaves = keras.tree.flatten(batch_loss.target(batch, step))
            sums = [ops.sum(leaf) for leaf in leaves if leaf is not None]
            return sum(sums, ops.zeros(()))

        fixed = batch_loss.target(batch, step)
        gradient = with_weight(lambda: batch_loss.loss(batch, fixed, step)[0])
        assert np.all(np.isfinite(gradient))
        assert np.abs(gradient).max() > 1e-8
        np.testing.assert_array_equal(with_weight(target), 0.0)

    def test_network_passes_are_those_that_are_made(self, drawn, monkeypatch):
        """A forward pass is 1, its derivative another, their backward pass twice.

        A pass of some rows is that share of one.
        """
        batch_loss, batch, step = drawn
        backbone, passes = batch_loss.flow_map.backbone, []
        call = backbone.call
        rows = RUNS * batch_loss.objective.rows_together

        def counted(inputs, **kwargs):
            share = inputs[0].shape[0] / rows
            passes.append(share * (2.0 if in_forward_mode() else 1.0))
            return call(inputs, **kwargs)

        monkeypatch.setattr(backbone, "call", counted)
        target = batch_loss.target(batch, step)
        forward = sum(passes)
        passes.clear()
        batch_loss.loss(batch, target, step)
        total = forward + 3 * sum(passes)
        assert total == batch_loss.objective.network_passes

    def test_target_and_loss_draw_the_same_masks(self, objective, data, monkeypatch):
        """The same random state, and as many rows."""
        model = new_model(objective, network={"dropout": 0.1})
        batch_loss, step = model.batch_loss(), ops.convert_to_tensor(STEP, "int32")
        batch = batch_loss.draw(tensors(data), step)
        calls, call = [], model.backbone.call

        def now():
            return [state.value for state in random_states(model.backbone)]

        def values(states):
            return [ops.convert_to_numpy(state).tolist() for state in states]

        def recorded(inputs, **kwargs):
            # PyTorch changes them in place, and inside of a derivative reads none.
            states = now() if in_forward_mode() else values(now())
            calls.append((inputs[0].shape[0], states))
            return call(inputs, **kwargs)

        monkeypatch.setattr(model.backbone, "call", recorded)
        target = batch_loss.target(batch, step)
        of_target = [(count, values(states)) for count, states in calls]
        calls.clear()
        states = values(now())
        batch_loss.loss(batch, target, step)
        rows = calls[0][0]
        assert rows == len(data[0])
        assert all(found == states for _, found in of_target)
        if not objective.averages:  # another network's output, of some rows, or all
            assert all(found == rows for found, _ in of_target)

    def test_one_compiled_step(self, objective, data):
        model = new_model(objective, network={"dropout": 0.1})
        before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
        history = model.fit(*data, batch_size=len(data[0]), verbose=0).history
        assert np.isfinite(history["loss"]).all()
        after = [ops.convert_to_numpy(v) for v in model.trainable_variables]
        assert all(np.all(np.isfinite(value)) for value in after)
        assert any(np.any(a != b) for a, b in zip(before, after, strict=True))
        losses = [model.evaluate(*data, batch_size=len(data[0]), verbose=0)] * 2
        assert losses[0] == losses[1]

    def test_half_precision_is_that_of_the_network_alone(self, objective, data):
        model = quick_model(objective, network={"dtype": "mixed_bfloat16"})
        loss = model.train_on_batch(*data)
        assert np.isfinite(loss)
        for v in model.trainable_variables:
            assert v.dtype == "float32"
            assert np.all(np.isfinite(ops.convert_to_numpy(v)))
        exact = quick_model(objective).train_on_batch(*data)
        np.testing.assert_allclose(loss, exact, rtol=0.1, atol=0.01)

    def test_a_run_from_a_file_goes_on_as_it_would_have(
        self, objective, data, tmp_path
    ):
        model = quick_model(objective, network={"dropout": 0.1})
        model.train_on_batch(*data)
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        for one in (model, again):
            one.train_on_batch(*data)
        assert len(again.variables) == len(model.variables)
        for one, other in zip(model.variables, again.variables, strict=True):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(one), ops.convert_to_numpy(other)
            )

    def test_blocks_that_are_computed_again_change_nothing(self, objective, data):
        after = []
        for remat in (False, True):
            new = new_model if remat else quick_model
            model = new(objective, network={"remat": remat})
            model.train_on_batch(*data)
            after.append([ops.convert_to_numpy(v) for v in model.trainable_variables])
        for one, other in zip(*after, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)

    def test_a_batch_of_incomplete_runs_is_refused(self, objective, data):
        if objective.rows_together == 1:
            pytest.skip("one row is a run")
        with pytest.raises(ValueError, match="must be a multiple of"):
            new_model(objective).train_on_batch(data[0][1:], data[1][1:])

    def test_sampling_by_default(self, objective):
        model = new_model(objective)
        plan = SamplingPlan().completed(objective)
        plan.check(model.flow)
        assert plan.num_steps >= 1
        images = model.generate([0, 1, 2], seed=0)
        assert images.shape == (3, 4, 4, 1)
        assert np.all(np.isfinite(images))
        asked = model.generate(
            [0, 1, 2],
            num_steps=plan.num_steps,
            sampler=plan.sampler,
            time_grid=plan.time_grid,
            seed=0,
        )
        np.testing.assert_array_equal(images, asked)

    @pytest.mark.parametrize("num_steps", [1, 3])
    def test_any_number_of_steps_samples(self, objective, num_steps):
        images = new_model(objective).generate([0, 1, 2], num_steps=num_steps, seed=0)
        assert np.all(np.isfinite(images))

    def test_config_round_trip_inside_a_model(self, objective):
        config = json.loads(json.dumps(new_model(objective).get_config()))
        again = keras_imm.FlowMapModel.from_config(config)
        assert type(again.objective) is type(objective)
        assert again.objective.get_config() == objective.get_config()
