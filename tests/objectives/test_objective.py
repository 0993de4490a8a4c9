"""The base class of objectives, and objectives of others."""

import warnings

import keras
import newcomer_objectives
import numpy as np
import pytest
from contracts import subclasses_of
from contracts.objective import ObjectiveContract, new_model
from function_network import FunctionNetwork
from keras import ops

import keras_imm
from keras_imm import objectives
from keras_imm.flow_map import FlowMap, Network


@pytest.mark.any_backend("the contract runs with ours on each")
class TestNewcomers(ObjectiveContract):
    @pytest.fixture(params=newcomer_objectives.EVERY, ids=lambda kind: kind.__name__)
    def instance(self, request):
        return request.param(label_dropout=0.2, total_steps=5)


def test_every_objective_keeps_the_contract():
    """Each file's test subclasses it."""
    known = set()
    for module in (objectives.moment_matching, objectives.flow_matching):
        known |= subclasses_of(objectives.Objective, module)
    assert known == {objectives.MomentMatching, objectives.FlowMatching}
    registered = {type(objectives.get(n)) for n in ("moment_matching", "flow_matching")}
    assert registered == known


def test_names():
    one = objectives.FlowMatching()
    assert objectives.get(one) is one
    with pytest.raises(ValueError, match=r"'moment_matching', 'flow_matching'.*'ddpm'"):
        objectives.get("ddpm")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"label_dropout": -0.1},
            r"`label_dropout` must be a number in.*-0.1",
        ),
        ({"label_dropout": "a"}, r"`label_dropout` must be .*'a'"),
        ({"total_steps": 0}, "`total_steps` must be an integer of at least 1.*0"),
        ({"total_steps": 1.5}, "`total_steps` must be an integer.*1.5"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        objectives.Objective(**options)


def test_what_an_objective_owes_is_named():
    class Nothing(objectives.Objective):
        pass

    network = Network(FlowMap(FunctionNetwork(None)))
    with pytest.raises(NotImplementedError, match="Nothing does not implement `draw`"):
        Nothing().draw(network, None, None, None, None, True)
    with pytest.raises(NotImplementedError, match="Nothing does not implement `loss`"):
        Nothing().loss(network, None, None)
    assert Nothing().target(network, None) is None


def test_dropped_labels():
    network = Network(FlowMap(FunctionNetwork(None, num_classes=7)))
    labels = ops.convert_to_tensor((np.arange(4000) % 7).astype("int32"))
    seed = keras.random.SeedGenerator(0)

    def dropped(rate, training=True, labels=labels):
        objective = objectives.Objective(label_dropout=rate)
        return objective.drop_labels(network, labels, seed, training)

    kept = ops.convert_to_numpy(labels)
    for found in (dropped(0.0), dropped(0.5, training=False)):
        np.testing.assert_array_equal(ops.convert_to_numpy(found), kept)
    assert np.all(ops.convert_to_numpy(dropped(1.0)) == 7)
    found = ops.convert_to_numpy(dropped(0.3))
    assert found.dtype == "int32"
    null = found == 7
    assert null.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_array_equal(found[~null], kept[~null])
    assert dropped(0.5, labels=None) is None
    network = Network(FlowMap(FunctionNetwork(None)))
    with pytest.raises(ValueError, match=r"needs a backbone with `num_classes` > 0"):
        dropped(0.5)


def test_what_an_objective_wants_of_the_flow_map():
    model = new_model(newcomer_objectives.Derivatives())
    assert (model.time_scale, model.second_time) == (1.0, "stride")
    assert model.max_time == 0.994  # the usual where it says nothing
    with pytest.warns(UserWarning, match=r"Derivatives is meant for time_scale=1.0"):
        model = new_model(newcomer_objectives.Derivatives(), time_scale=1000.0)
    assert model.time_scale == 1000.0


def test_another_objective_of_a_model_warns_of_what_it_is_not_meant_for():
    model = new_model("moment_matching")
    with pytest.warns(UserWarning, match=r"Derivatives is meant for time_scale=1\.0"):
        model.objective = newcomer_objectives.Derivatives()


@pytest.mark.parametrize("name", ["mean_flow", "continuous_consistency", "shortcut"])
def test_what_is_meant_warns_of_nothing(name, tmp_path, recwarn):
    """Neither as an object nor from a file."""
    model = new_model(name)
    pieces = {"schedule": model.schedule, "parameterization": model.parameterization}
    new_model(name, **pieces)
    model.save(tmp_path / "model.keras")
    keras.models.load_model(tmp_path / "model.keras")
    assert not [str(w.message) for w in recwarn if "is meant for" in str(w.message)]


GUIDED = {
    "MeanFlow": lambda **options: objectives.MeanFlow(omega=2.0, **options),
    "SoFlow": lambda **options: objectives.SoFlow(guidance_mix=0.25, **options),
    "Shortcut": lambda **options: objectives.Shortcut(guidance_scale=1.5, **options),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_in_training_needs_labels_and_none(name):
    for rate in (0.0, 1.0):
        with pytest.raises(ValueError, match=rf"needs `label_dropout` in.*={rate}"):
            GUIDED[name](label_dropout=rate)
    with pytest.raises(ValueError, match="needs a backbone with `num_classes` > 0"):
        new_model(GUIDED[name](), num_classes=0)
    new_model(GUIDED[name]())


def test_jumps_of_shortcut_that_are_not_trained():
    model = new_model(objectives.Shortcut())
    with pytest.warns(UserWarning, match="needs, is not trained in jumps by Shortcut"):
        model.generate(num_samples=2, num_steps=1)
    model = new_model(objectives.Shortcut())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.generate([0, 1], num_steps=1)
        # Where no label is trained, all rows have none.
        objective = objectives.Shortcut(0.5, label_dropout=1.0)
        new_model(objective).generate(num_samples=2, num_steps=1)
    network = Network(FlowMap(FunctionNetwork(None, num_classes=7)))
    x, labels = ops.ones((8, 4)), ops.ones((8,), "int32")
    p = objective.draw(network, x, labels, keras.random.SeedGenerator(0))
    assert np.all(ops.convert_to_numpy(p.labels) == 7)


def test_a_share_that_is_no_fraction_is_named_as_it_was_given():
    with pytest.raises(ValueError, match=r"bootstrap_share=0\.01"):
        objectives.Shortcut(0.01)


def test_an_objective_refuses_a_flow_map():
    class Refuses(objectives.FlowMatching):
        def check(self, flow_map):
            raise ValueError(f"not with {flow_map.second_time}")

    with pytest.raises(ValueError, match="not with stride"):
        new_model(Refuses(), second_time="stride")


def test_the_objective_must_be_one():
    with pytest.raises(ValueError, match="`objective` must be one of"):
        keras_imm.FlowMapModel(FunctionNetwork(None), objective=3)
