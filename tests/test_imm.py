"""What is particular to IMM: its passes, its groups, its constructor."""

import inspect

import keras
import numpy as np
import pytest
from keras import ops

import keras_imm
from keras_imm.objectives import Batch
from keras_imm.objectives.moment_matching import Particles


def weights_of(model):
    return [ops.convert_to_numpy(v) for v in model.trainable_variables]


def fit(model, images, labels, **options):
    options = {"batch_size": 16, "epochs": 2, "shuffle": False, "verbose": 0} | options
    return model.fit(images, labels, **options)


def test_gradient_holds_the_target_fixed(make_model, images, labels):
    # One step of plain descent against finite differences of the loss in which
    # the target keeps its value; a gradient through both passes is another one.
    options = {"label_dropout": 0.0, "time_mapping": "time_decrement"}
    options["time_mapping"] = keras_imm.time_mappings.TimeDecrement(k=1)
    trained = make_model({"optimizer": keras.optimizers.SGD(1.0)}, **options)
    before = weights_of(trained)
    trained.train_on_batch(images, labels)
    gradient = [old - new for old, new in zip(before, weights_of(trained), strict=True)]

    model = make_model(**options)
    batch_loss, step = model.batch_loss(), ops.convert_to_tensor(0)
    batch = batch_loss.draw((images, labels), step)
    y_target = ops.convert_to_numpy(ops.stop_gradient(batch_loss.target(batch, step)))
    norm = np.sqrt(sum(np.sum(np.square(g, dtype="float64")) for g in gradient))
    losses = []
    for sign in (1.0, -1.0):
        for v, value, g in zip(
            model.trainable_variables, before, gradient, strict=True
        ):
            v.assign(value + (sign * 5e-3 / norm) * g)
        loss, _ = batch_loss.loss(batch, ops.convert_to_tensor(y_target), step)
        losses.append(float(ops.convert_to_numpy(ops.stop_gradient(loss))))
    slope = (losses[0] - losses[1]) / 1e-2
    np.testing.assert_allclose(slope, norm, rtol=2e-2)


def test_dropout_masks_are_the_same_in_both_passes(make_model, images, labels):
    # With r = t both passes see the same input: only masks could tell them apart.
    model = make_model(dropout=0.5, label_dropout=0.0)
    t = np.full(32, 0.7, "float32")
    s = np.full(32, 0.2, "float32")
    batch = Batch(Particles(images, images, s, t, t, labels, labels))
    batch_loss, step = model.batch_loss(), ops.convert_to_tensor(0)
    losses = []
    for _ in range(2):
        y_target = ops.stop_gradient(batch_loss.target(batch, step))
        loss, _ = batch_loss.loss(batch, y_target, step)
        losses.append(float(ops.convert_to_numpy(ops.stop_gradient(loss))))
    assert losses == [0.0, 0.0]
    # And the next step draws other masks.
    a, b = (
        ops.convert_to_numpy(
            ops.stop_gradient(model(images, t, s, labels, training=True))
        )
        for _ in range(2)
    )
    assert np.any(a != b)


def test_label_dropout_reaches_the_passes_it_should(make_model, images, labels):
    data = (ops.convert_to_tensor(images), ops.convert_to_tensor(labels))
    for both in (True, False):
        model = make_model(label_dropout=1.0, drop_target_labels=both)
        particles = model.batch_loss().draw(data, ops.convert_to_tensor(0)).particles
        np.testing.assert_array_equal(ops.convert_to_numpy(particles.labels), 3)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(particles.target_labels), 3 if both else labels
        )


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("accumulation_steps", [1, 4])
def test_batch_must_be_whole_groups(make_model, images, labels, accumulation_steps):
    model = make_model({}, accumulation_steps=accumulation_steps)
    before = weights_of(model)
    # 24 is a multiple of the group size alone.
    for count in (22, 24) if accumulation_steps > 1 else (22,):
        with pytest.raises(ValueError, match=r"multiple of `group_size`.*") as error:
            fit(model, images[:count], labels[:count], batch_size=count)
        assert f"accumulation_steps={accumulation_steps}" in str(error.value)
    # And the model is as it was: it evaluates, samples and trains.
    for old, new in zip(before, weights_of(model), strict=True):
        np.testing.assert_array_equal(old, new)
    with pytest.raises(ValueError, match="multiple of `group_size`"):
        model.evaluate(images[:22], labels[:22], batch_size=22, verbose=0)
    assert model.generate([0], seed=0).shape == (1, 4, 4, 1)
    assert fit(model, images, labels).history["loss"][0] > 0


def test_evaluation_batch_must_be_whole_groups(make_model, images, labels):
    model = make_model({}, accumulation_steps=8)
    assert model.evaluate(images[:20], labels[:20], batch_size=20, verbose=0) > 0
    with pytest.raises(ValueError, match=r"multiple of `group_size`"):
        model.evaluate(images[:18], labels[:18], batch_size=16, verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"schedule": "linear"}, r"`schedule` must be one of 'flow_matching', 'cos"),
        ({"parameterization": "v"}, r"`parameterization` must be one of 'identity'"),
        ({"time_mapping": 3}, r"`time_mapping` must be one of 'eta_decrement'.*=3"),
        ({"kernel": "cauchy"}, r"`kernel` must be one of 'laplace'.*'cauchy'"),
        ({"weighting": "min_snr"}, r"`weighting` must be one of 'elbo', 'uniform'"),
        ({"second_time": "r"}, r"`second_time` must be one of 's', 'stride'.*'r'"),
        ({"time_scale": 0}, r"`time_scale` must be a finite number above 0.*=0"),
        ({"group_size": 0}, r"`group_size` must be an integer of at least 1.*=0"),
        ({"group_size": 2.0}, r"`group_size` must be an integer.*=2.0"),
        ({"accumulation_steps": -1}, r"`accumulation_steps` must be .*=-1"),
        ({"sigma_data": -0.5}, r"`sigma_data` must be a finite number.*=-0.5"),
        ({"min_time": 0.9, "max_time": 0.5}, r"min_time=0.9, max_time=0.5"),
        ({"max_time": 1.1}, r"`max_time` <= 1.*max_time=1.1"),
        ({"max_time": 1.0}, r"EtaDecrement` needs `max_time` < 1.*=1.0"),
        ({"time_mapping": "log_snr_decrement"}, r"needs `min_time` > 0.*=0.0"),
        ({"label_dropout": 1.5}, r"`label_dropout` must be a number in \[0, 1\].*1.5"),
        ({"min_time": "a"}, r"`min_time` must be a number in \[0, 1\].*='a'"),
        ({"max_time": None}, r"`max_time` must be a number in \[0, 1\].*=None"),
        ({"drop_target_labels": "yes"}, r"`drop_target_labels` must be True or Fal"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0.*=-1"),
        (
            {"schedule": "cosine", "max_time": 0.996},
            r'`parameterization="euler_fm"` needs `schedule="flow_matching"`',
        ),
    ],
)
def test_constructor_errors(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_model(**arguments)


def test_backbone_must_be_a_layer():
    with pytest.raises(ValueError, match=r"`backbone` must be a Layer.*=3"):
        keras_imm.IMM(3)


def test_config_round_trip(make_model):
    arguments = {
        "schedule": keras_imm.schedules.Cosine(),
        "parameterization": keras_imm.parameterizations.SimpleEDM(),
        "time_mapping": keras_imm.time_mappings.TimeDecrement(k=9, min_gap=1e-4),
        "kernel": keras_imm.kernels.PseudoHuber(c=0.1),
        "weighting": keras_imm.weightings.ELBO(a=2, b=5),
        "second_time": "stride",
        "time_scale": 10.0,
        "group_size": 2,
        "accumulation_steps": 3,
        "sigma_data": 0.7,
        "min_time": 0.01,
        "max_time": 0.996,
        "label_dropout": 0.3,
        "drop_target_labels": False,
        "seed": 5,
        "times": keras_imm.time_distributions.LogitNormal(mean=0.1),
        "flow_matching_share": 0.25,
        "name": "model",
    }
    model = make_model(**arguments)
    config = model.get_config()
    parameters = set(inspect.signature(keras_imm.IMM.__init__).parameters)
    more = {"num_classes", "frozen_layers"}  # of the backbone
    assert set(config) == parameters - {"self", "kwargs"} | {"name"} | more
    assert set(config) == {"backbone", "augmentation", *arguments} | more
    again = keras_imm.IMM.from_config(config)
    assert again.get_config() == config
    for name, value in arguments.items():
        if hasattr(value, "get_config"):
            assert type(getattr(again, name)) is type(value)
            assert getattr(again, name).get_config() == value.get_config()
        else:
            assert getattr(again, name) == value
    assert again.objective.label_dropout == 0.3
    assert not again.objective.drop_target_labels


def test_custom_objects_by_name(make_model, tmp_path):
    class Cauchy(keras_imm.kernels.Kernel):
        def relative(self, squared_distance, scale, dimension):
            return -squared_distance / (1.0 + squared_distance)

    make_model(kernel=Cauchy()).save(tmp_path / "model.keras")
    loaded = keras.models.load_model(
        tmp_path / "model.keras", custom_objects={"Cauchy": Cauchy}
    )
    assert type(loaded.kernel) is Cauchy
