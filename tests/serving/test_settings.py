"""What exports are asked for, in plain types."""

import json

import numpy as np
import pytest
from gaussian_flow import gaussian_model
from small_dit import small_dit

import keras_imm
from keras_imm.objectives import FlowMatching
from keras_imm.samplers import Euler, SamplingPlan
from keras_imm.serving.settings import Settings


def settings(plan=None, **options):
    return Settings(SamplingPlan(**plan or {}), **options).checked()


@pytest.mark.parametrize(
    ("given", "steps", "default"),
    [(3, (3,), 3), ((4, 2), (4, 2), 2), ([np.int64(8), 1], (8, 1), 8)],
)
def test_steps(given, steps, default):
    checked = settings(num_steps=given)
    assert checked.num_steps == steps
    assert all(type(count) is int for count in checked.num_steps)
    assert checked.default_num_steps == default
    assert (
        settings(num_steps=steps, default_num_steps=steps[-1]).default_num_steps
        == (steps[-1])
    )


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        ({}, {"num_steps": ()}, "one or more different numbers"),
        ({}, {"num_steps": (1, 1)}, "one or more different numbers"),
        ({}, {"num_steps": (1, 2.5)}, r"`num_steps` must be an integer.*2\.5"),
        ({}, {"num_steps": (1, 2), "default_num_steps": 3}, "must be one of 1, 2"),
        ({"time_grid": [1.4]}, {"num_steps": (2, 3)}, "makes 2 steps.*num_steps=3"),
        ({}, {"value_range": (1, 1)}, "rising, finite"),
        ({}, {"value_range": (0, np.inf)}, "rising, finite"),
        ({}, {"value_range": (0, 1, 2)}, "rising, finite"),
        ({}, {"value_range": ("a", "b")}, "a pair of numbers"),
        ({}, {"signatures": ()}, "non-empty sequence of names"),
        ({}, {"warmup": "yes"}, "`warmup` must"),
    ],
)
def test_checks(plan, options, message):
    with pytest.raises(ValueError, match=message):
        settings(plan, **options)


def test_none_is_the_objectives_own():
    model = gaussian_model()
    completed = settings(num_steps=(1, 4)).completed(model.objective, model.flow)
    assert isinstance(completed.plan.sampler, Euler)
    plans = completed.plans()
    assert {plan.time_grid for plan in plans.values()} == {FlowMatching.time_grid}
    assert {steps: plan.num_steps for steps, plan in plans.items()} == {1: 1, 4: 4}


def test_a_models_list_of_eta_is_for_its_steps_alone():
    model = keras_imm.IMM(small_dit())
    own = SamplingPlan(time_grid=[2.0, 1.4])
    ours = settings(num_steps=(2, 3)).completed(model.objective, model.flow, own)
    theirs = Settings.from_config(json.loads(json.dumps(ours.get_config())))
    for one in (ours, theirs):
        grids = {steps: plan.time_grid for steps, plan in one.plans().items()}
        assert grids == {2: model.objective.time_grid, 3: (2.0, 1.4)}
    given = settings({"time_grid": "edm"}, num_steps=3)
    (plan,) = given.completed(model.objective, model.flow, own).plans().values()
    assert plan.time_grid == "edm"


def test_the_flow_map_must_suit():
    model = gaussian_model()
    for plan in ({"guidance_scale": 2.0}, {"time_grid": "edm"}):
        with pytest.raises(ValueError, match="needs"):
            settings(plan).completed(model.objective, model.flow)


def test_settings_survive_json():
    plan = {"sampler": "euler", "guidance_scale": np.float32(1.5)}
    plan["guidance_interval"] = (0.25, 0.75)
    ours = settings(
        plan,
        num_steps=(1, 4),
        value_range=(-2, 3),
        signatures=["decode", "flow_map"],
        warmup=False,
    )
    theirs = Settings.from_config(json.loads(json.dumps(ours.get_config())))
    assert theirs.get_config() == ours.get_config()
    assert isinstance(theirs.plan.sampler, Euler)
    assert theirs.plan.guidance_interval == (0.25, 0.75)
    assert (theirs.value_range, theirs.warmup) == ((-2.0, 3.0), False)
