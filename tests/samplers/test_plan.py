"""What a plan refuses, what it fills in, and that everything takes the same one."""

import inspect
import itertools
import json

import numpy as np
import pytest
import reference
from gaussian_flow import gaussian_model
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm import callbacks, recipes, samplers, serving
from keras_imm.samplers import SamplingPlan

INTERVAL = (0.3, 0.7)


class Defaults:
    """What an objective says of sampling."""

    num_steps, sampler, time_grid = 4, "restart", "edm"


def plan(**options):
    return SamplingPlan(**options).completed(Defaults)


# -- Checks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, r"`num_steps` must be an integer of at least 1.*=0"),
        ({"num_steps": 1.5}, r"`num_steps` must be an integer.*=1\.5"),
        ({"num_steps": True}, r"`num_steps` must be an integer.*=True"),
        ({"num_steps": "2"}, r"`num_steps` must be an integer.*='2'"),
        ({"sampler": "ddim"}, r"`sampler` must be one of 'pushforward'.*'ddim'"),
        ({"sampler": samplers.Euler}, r"`sampler` must be .*Euler"),
        ({"time_grid": "cosine"}, r"`time_grid` must be one of 'uniform', 'edm'"),
        ({"time_grid": 1.4}, r"`time_grid` must be one of .*=1\.4"),
        ({"time_grid": ["edm"]}, r"`time_grid` must be one of .*\['edm'\]"),
        ({"time_grid": [[1.4]]}, r"`time_grid` must be one of .*\[\[1\.4\]\]"),
        ({"guidance_scale": float("nan")}, r"`guidance_scale` must be .*=nan"),
        ({"guidance_scale": float("inf")}, r"`guidance_scale` must be .*=inf"),
        ({"guidance_scale": "a"}, r"`guidance_scale` must be a finite number.*='a'"),
        ({"guidance_scale": [1.0, 2.0]}, r"`guidance_scale` must be a finite.*2.0\]"),
        ({"weights": "mean"}, r"`weights` must be one of 'ema', 'raw'.*'mean'"),
        ({"weights": None}, r"`weights` must be one of 'ema', 'raw'.*None"),
        ({"guidance_interval": (0.2, 0.8)}, r"limits a `guidance_scale`.*\(0\.2, 0\.8"),
        *(
            (
                {"guidance_scale": 2.0, "guidance_interval": interval},
                r"`guidance_interval` must be a pair of rising times in \[0, 1\]",
            )
            for interval in (
                *((0.8, 0.2), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (0.5,)),
                *((0.1, 0.2, 0.3), 0.5, "ab", (float("nan"), 0.5), (None, 0.5)),
            )
        ),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamplingPlan(**arguments)


@pytest.mark.parametrize("etas", [[1.4], (80.0, 1.4), np.array([3, 1]), []])
def test_a_list_of_eta_has_its_own_number_of_steps(etas):
    makes = len(etas) + 1
    assert SamplingPlan(time_grid=etas).num_steps == makes
    assert SamplingPlan(time_grid=etas, num_steps=makes).num_steps == makes
    assert plan(time_grid=etas).num_steps == makes  # not the objective's 4
    for other in {1, 2, 3, 8} - {makes}:
        with pytest.raises(ValueError, match=rf"makes {makes} step.*num_steps={other}"):
            SamplingPlan(time_grid=etas, num_steps=other)


def test_another_number_of_steps_drops_the_objectives_list_of_eta():
    class Etas(Defaults):
        time_grid = (1.4,)

    assert SamplingPlan().completed(Etas).num_steps == 2
    assert SamplingPlan(num_steps=2).completed(Etas).time_grid == (1.4,)
    for given in ({}, {"time_grid": "edm"}):
        three = SamplingPlan(num_steps=3, **given).completed(Etas)
        expected = given.get("time_grid", "uniform")
        assert (three.num_steps, three.time_grid) == (3, expected)


def test_another_number_of_steps_is_checked_too():
    assert plan().with_steps(7).num_steps == 7
    with pytest.raises(ValueError, match=r"makes 2 steps.*num_steps=3"):
        SamplingPlan(time_grid=[1.4]).with_steps(3)


def test_none_is_the_objectives_own():
    whole = plan()
    assert (whole.num_steps, whole.time_grid) == (4, "edm")
    assert isinstance(whole.sampler, samplers.Restart)
    own = plan(num_steps=1, sampler="heun", time_grid="uniform")
    assert (own.num_steps, own.time_grid) == (1, "uniform")
    assert isinstance(own.sampler, samplers.Heun)


def test_a_plan_suits_a_flow_map_or_not():
    conditional = keras_imm.IMM(small_dit(num_classes=3)).flow
    unconditional = gaussian_model().flow
    plan(guidance_scale=2.0).check(conditional)
    with pytest.raises(ValueError, match=r"`guidance_scale` needs .*=2.0"):
        plan(guidance_scale=2.0, time_grid="uniform").check(unconditional)
    with pytest.raises(ValueError, match=r"needs `max_time` < 1"):
        plan().check(unconditional)
    with pytest.raises(ValueError, match="must hold falling values of eta"):
        plan(time_grid=[1.0, 2.0]).check(conditional)


@pytest.mark.parametrize(
    ("identifier", "num_steps"), [("uniform", 3), ("edm", 4), ([1.4], None)]
)
def test_times_noises_and_evaluations(identifier, num_steps):
    flow = keras_imm.IMM(small_dit()).flow
    whole = plan(time_grid=identifier, num_steps=num_steps)
    steps = num_steps or 2
    if identifier == "uniform":
        expected = np.linspace(0.994, 0.0, 4)
    elif identifier == "edm":
        last = reference.eta("flow_matching", 0.994) ** (1 / 7)
        eta = (last * np.linspace(1, 0, 5)) ** 7
        expected = reference.inverse_eta("flow_matching", eta)
    else:
        expected = [0.994, 1.4 / 2.4, 0.0]
    np.testing.assert_allclose(whole.times(flow), expected, atol=2e-6)
    assert whole.noises() == steps - 1
    assert whole.evaluations() == steps
    assert plan(sampler="heun", num_steps=5).evaluations() == 10


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_steps": np.int64(3), "sampler": "euler", "weights": "raw"},
        {"time_grid": np.array([3.0, 1.4]), "guidance_scale": 1.5},
        {"guidance_scale": 2.0, "guidance_interval": (0.25, 0.75), "sampler": "heun"},
    ],
)
def test_a_plan_survives_json(options):
    for each in (SamplingPlan(**options), plan(**options)):
        config = json.loads(json.dumps(each.get_config()))
        back = SamplingPlan.from_config(config)
        assert type(back.sampler) is type(each.sampler)
        ours, theirs = each.arguments(), back.arguments()
        ours.pop("sampler"), theirs.pop("sampler")
        assert ours == theirs


def test_arguments_ask_generate_for_the_plan():
    whole = plan(sampler="euler", time_grid="uniform", num_steps=3)
    noise = samplers.standard_noise(0, 1, 4, (2, 2, 1))[0]
    model = gaussian_model()
    np.testing.assert_array_equal(
        model.generate(noise=noise, **whole.arguments()),
        model.generate(noise=noise, num_steps=3, sampler="euler"),
    )


def test_a_plan_cannot_be_changed_after_its_checks():
    with pytest.raises(AttributeError):
        plan().num_steps = 0


@pytest.mark.parametrize(
    ("labels", "allowed"), [([0, 3], True), ([4], False), ([-1], False), ([], True)]
)
def test_labels(labels, allowed):
    labels = np.array(labels, "int32")
    if allowed:
        samplers.check_labels(labels, 3)
        return
    with pytest.raises(ValueError, match=r"in \[0, 3\], where 3 is the null label"):
        samplers.check_labels(labels, 3)


# -- Guidance in an interval, everywhere


@pytest.fixture
def x():
    return samplers.standard_noise(2, 1, 5, (4, 4, 1))[0]


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_guidance_is_off_outside_of_the_interval(make_model, x, run_eagerly):
    """Each row by its own time; the ends are inside."""
    model = make_model({"run_eagerly": run_eagerly})
    labels = np.arange(5) % 3
    t = np.array([0.2, 0.3, 0.5, 0.7, 0.8], "float32")
    interval = np.array(INTERVAL, "float32").tolist()  # as the times are rounded

    def jump(scale, interval=None):
        out = model.flow_map(
            x, t, 0.1, labels, guidance_scale=scale, guidance_interval=interval
        )
        return ops.convert_to_numpy(out)

    limited, guided, plain = jump(3.0, interval), jump(3.0), jump(None)
    inside = [False, True, True, True, False]
    expected = np.where(np.reshape(inside, (5, 1, 1, 1)), guided, plain)
    np.testing.assert_allclose(limited, expected, atol=1e-5)
    assert np.abs(guided - plain).reshape(5, -1).max(1).min() > 1e-3


def by_hand(model, x, labels, scale, times):
    """Pushforward, with guidance in the steps that start in the interval."""
    x = 0.5 * x
    for t, s in itertools.pairwise(times):
        w = scale if INTERVAL[0] <= t <= INTERVAL[1] else None
        x = model.flow_map(x, float(t), float(s), labels, guidance_scale=w)
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_generate_limits_guidance(make_model, x, run_eagerly):
    model = make_model({"run_eagerly": run_eagerly})
    labels, request = np.arange(5) % 3, {"num_steps": 4, "guidance_scale": 3.0}
    expected = by_hand(model, x, labels, 3.0, np.linspace(0.994, 0.0, 5))
    found = model.generate(labels, noise=x, guidance_interval=INTERVAL, **request)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    everywhere = model.generate(labels, noise=x, **request)
    assert np.abs(everywhere - expected).max() > 1e-2
    all_times = model.generate(labels, noise=x, guidance_interval=(0.0, 1.0), **request)
    np.testing.assert_allclose(all_times, everywhere, atol=1e-5)


def test_callbacks_limit_guidance(make_model):
    model = make_model({})
    labels = np.arange(5) % 3
    noise = samplers.standard_noise(7, 1, 5, (4, 4, 1))[0]
    expected = by_hand(model, noise, labels, 3.0, np.linspace(0.994, 0.0, 5))
    callback = callbacks.SampleMetrics(
        {"mean": lambda samples, labels: samples.mean()},
        labels=labels,
        num_steps=4,
        seed=7,
        guidance_scale=3.0,
        guidance_interval=INTERVAL,
    )
    callback.set_model(model)
    np.testing.assert_allclose(callback.generate()[4], expected, atol=1e-4)


@pytest.mark.parametrize("sampler", ["restart", "euler", "heun"])
def test_every_sampler_limits_guidance(make_model, x, sampler):
    model = make_model({})
    draws = samplers.standard_noise(2, 4, 5, (4, 4, 1))
    request = {"labels": np.arange(5) % 3, "num_steps": 4, "sampler": sampler}
    request["noise"] = draws if sampler == "restart" else draws[0]
    nowhere = model.generate(
        guidance_scale=3.0, guidance_interval=(0.995, 1.0), **request
    )
    np.testing.assert_allclose(nowhere, model.generate(**request), atol=1e-4)
    somewhere = model.generate(
        guidance_scale=3.0, guidance_interval=INTERVAL, **request
    )
    everywhere = model.generate(guidance_scale=3.0, **request)
    for other in (nowhere, everywhere):
        assert np.abs(somewhere - other).max() > 1e-3


@pytest.mark.parametrize(
    "function",
    [
        keras_imm.FlowMapModel.generate,
        keras_imm.FlowMapModel.flow_map,
        keras_imm.FlowMapModel.call,
        callbacks.SampleGrid.__mro__[1].__init__,
        serving.export_saved_model,
        serving.export_onnx,
    ],
    ids=lambda function: function.__qualname__,
)
def test_everything_that_is_guided_takes_an_interval(function):
    parameters = inspect.signature(function).parameters
    assert {"guidance_scale", "guidance_interval"} <= parameters.keys()
    assert parameters["guidance_interval"].default is None


def test_the_interval_is_checked_wherever_it_is_given(make_model, tmp_path):
    model, bad = make_model(), {"guidance_scale": 2.0, "guidance_interval": (0.8, 0.2)}
    for ask in (
        lambda: model.generate(**bad),
        lambda: model.flow_map(np.zeros((1, 4, 4, 1)), 0.5, 0.1, **bad),
        lambda: callbacks.SampleGrid(tmp_path / "a.png", num_samples=1, **bad),
        lambda: serving.export_saved_model(model, tmp_path / "served", **bad),
        lambda: serving.export_onnx(model, tmp_path / "model.onnx", **bad),
    ):
        with pytest.raises(ValueError, match="`guidance_interval` must be a pair"):
            ask()
    assert list(tmp_path.iterdir()) == []


# -- Recipes


@pytest.mark.parametrize("name", recipes.names())
def test_recipes_have_plans(name):
    recipe = recipes.get(name)
    whole = recipe.sampling_plan()
    assert type(whole.sampler) is samplers.SAMPLERS[recipe.sampler]
    assert whole.guidance_scale == recipe.guidance_scale
    assert whole.guidance_interval is None  # none was published
    for count, _ in recipe.fid:
        of_count = recipe.sampling_plan(count)
        assert of_count.num_steps == count
        grid = recipe.time_grid
        if isinstance(grid, str) or len(grid) + 1 == count:
            assert of_count.time_grid == grid
        else:
            assert of_count.time_grid == "uniform"


def test_arguments_take_the_places_of_a_plans_own():
    own = SamplingPlan(4, "restart", "edm", 1.5, (0.2, 0.8))
    assert own.with_arguments() == own.with_arguments(num_steps=None) == own
    changed = own.with_arguments(num_steps=2, guidance_scale=1.0, time_grid=None)
    assert changed == SamplingPlan(2, own.sampler, "edm", 1.0, (0.2, 0.8))
    assert own.with_arguments(guidance_interval=(0.1, 0.3)).guidance_scale == 1.5


def test_a_list_of_eta_brings_its_steps():
    own = SamplingPlan(4, time_grid="edm")
    assert own.with_arguments(time_grid=[1.4]).num_steps == 2
    etas = SamplingPlan(time_grid=[2.0, 1.4])
    assert etas.with_arguments(time_grid="uniform").num_steps == 3
    assert etas.with_arguments(time_grid=[1.4]).num_steps == 2
    with pytest.raises(ValueError, match="`time_grid` as a list of 2 makes 3 steps"):
        etas.with_arguments(num_steps=4, time_grid=[2.0, 1.4])


def test_another_number_of_steps_drops_a_list_of_eta():
    etas = SamplingPlan(time_grid=[2.0, 1.4], sampler="restart", guidance_scale=1.5)
    assert etas.with_arguments(num_steps=np.int64(3)) == etas
    changed = etas.with_arguments(num_steps=4)
    assert changed == SamplingPlan(4, etas.sampler, guidance_scale=1.5)
    assert changed.completed(Defaults).time_grid == "edm"
    assert etas.with_arguments(num_steps=4, time_grid="uniform").num_steps == 4
    for wrong in (0, 3.0, [3, 4]):
        with pytest.raises(ValueError, match="`num_steps` must be an integer"):
            etas.with_arguments(num_steps=wrong)
