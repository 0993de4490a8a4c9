"""Models of Keras behind a server, against `generate`."""

import numpy as np
import pytest
from small_dit import small_dit

import keras_imm
from keras_imm.samplers import SamplingPlan
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.keras_servable import KerasServable
from keras_imm.serving.server.row_noise import row_normal
from keras_imm.serving.server.servable import Tensor

SEEDS = np.array([1, 2**40, -7, 1, 5], "int64")
LABELS = np.array([0, 1, 2, 3, 1], "int32")


def copy(model, **attributes):
    made = type(model).from_config(model.get_config())
    made.set_weights(model.get_weights())
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def noise_of(seeds, draws=None):
    rows = [row_normal(seeds, 16, i) for i in range(draws or 1)]
    noise = np.stack(rows).reshape(-1, len(seeds), 4, 4, 1)
    return noise if draws else noise[0]


def expected(model, seeds=SEEDS, labels=LABELS, draws=None, **options):
    noise = noise_of(seeds, draws)
    return model.generate(labels, noise=noise, verbose=0, **options)


def assert_same(found, expected):
    assert found.shape == expected.shape and found.dtype == np.uint8
    assert np.abs(np.int64(found) - np.int64(expected)).max() <= 1


def test_seeds_and_labels_are_images_of_generate(tiny_model):
    pixels = keras_imm.Pixels(scale=30.0, offset=110.0)
    servable = KerasServable(copy(tiny_model, pixels=pixels), [1, 3])
    inputs = {"seed": SEEDS, "label": LABELS}
    for steps in (1, 3):
        name = f"generate_{steps}_steps"
        assert servable.check(name, inputs) == 5
        images = servable.run(name, inputs)["image"]
        assert images.std() > 10
        assert_same(images, pixels(expected(tiny_model, num_steps=steps)))
    assert_same(
        servable.run("serving_default", inputs)["image"],
        pixels(expected(tiny_model, num_steps=1)),
    )


def test_a_row_is_the_same_in_every_company(tiny_model):
    """In passes that are filled up, full, and several."""
    servable = KerasServable(tiny_model, [2], value_range=(-3, 3), max_batch_size=6)
    seeds, labels = np.arange(15), (np.arange(15) % 4).astype("int32")
    together = servable.run("serving_default", {"seed": seeds, "label": labels})
    for rows in ([3], [14, 3], list(range(4, 11))):
        inputs = {"seed": seeds[rows], "label": labels[rows]}
        found = servable.run("serving_default", inputs)["image"]
        assert_same(found, together["image"][rows])


@pytest.mark.one_backend("counts calls of `generate`")
def test_passes_have_a_few_sizes(tiny_model, monkeypatch):
    sizes = []

    def generate(labels, *, noise, batch_size, **_):
        sizes.append((len(labels), batch_size))
        return np.zeros(noise.shape[1:], "float32")

    model = copy(tiny_model)
    monkeypatch.setattr(model, "generate", generate)
    servable = KerasServable(model, [2], max_batch_size=20)
    for rows in (1, 2, 5, 17, 20, 50):
        inputs = {"seed": np.arange(rows), "label": np.zeros(rows, "int32")}
        assert len(servable.run("serving_default", inputs)["image"]) == rows
    assert sizes == [(n, 20) for n in (1, 4, 16, 20, 20, 50)]
    sizes.clear()
    servable.warm_up()
    assert sizes == [(n, 20) for n in (1, 4, 16, 20)]


def test_every_row_has_its_own_guidance(tiny_model):
    servable = KerasServable(tiny_model, [1], guidance_scale=30.0)
    scales = np.array([1.0, 30.0, 1.0, 0.5, 30.0], "float32")
    inputs = {"noise": noise_of(SEEDS), "label": LABELS, "guidance_scale": scales}
    found = servable.run("generate_from_noise", inputs)["image"]
    of_scale = {
        scale: expected(tiny_model, num_steps=1, guidance_scale=scale)
        for scale in (0.5, 1.0, 30.0)
    }
    assert np.abs(of_scale[1.0] - of_scale[30.0]).max() > 0.1
    for i, scale in enumerate(scales):
        np.testing.assert_allclose(found[i], of_scale[scale][i], rtol=1e-4, atol=1e-4)
    default = servable.run("serving_default", {"seed": SEEDS, "label": LABELS})
    assert_same(default["image"], keras_imm.Pixels()(of_scale[30.0]))


def test_noise_is_the_models_own(tiny_model):
    servable = KerasServable(tiny_model, [2])
    inputs = {"noise": noise_of(SEEDS), "label": LABELS}
    assert servable.check("generate_from_noise", inputs) == 5
    found = servable.run("generate_from_noise", inputs)["image"]
    np.testing.assert_allclose(
        found, expected(tiny_model, num_steps=2), rtol=1e-5, atol=1e-5
    )


def test_a_sampler_that_takes_noise_gets_that_of_the_seed(tiny_model):
    plan = SamplingPlan(num_steps=3, sampler="restart")
    pixels = keras_imm.Pixels(30.0, 110.0)
    model = copy(tiny_model, sampling_plan=plan, pixels=pixels)
    servable = KerasServable(model)
    assert "generate_from_noise" not in servable.signatures
    assert "generate_3_steps" in servable.signatures
    found = servable.run("serving_default", {"seed": SEEDS, "label": LABELS})["image"]
    draws = 1 + plan.sampler.noises(3)
    assert draws > 1
    assert_same(found, pixels(expected(model, draws=draws)))


@pytest.mark.one_backend("shapes alone")
def test_signatures(tiny_model):
    servable = KerasServable(copy(tiny_model, class_names=("a", "b", "c")))
    assert set(servable.signatures) == {
        *("serving_default", "generate_from_noise"),
        *(f"generate_{n}_steps" for n in (1, 2, 4, 8)),
    }
    one = servable.signatures["serving_default"]
    assert one.inputs == {
        "seed": Tensor(np.dtype("int64"), (None,)),
        "label": Tensor(np.dtype("int32"), (None,)),
    }
    assert one.outputs == {"image": Tensor(np.dtype("uint8"), (None, 4, 4, 1))}
    assert servable.class_names == ("a", "b", "c") and servable.num_labels == 3
    assert servable.platform == "keras_torch"
    unconditional = keras_imm.IMM(small_dit(num_classes=0))
    signatures = KerasServable(unconditional, guidance_scale=None).signatures
    assert [*signatures["serving_default"].inputs] == ["seed"]


@pytest.mark.one_backend("checks arguments")
def test_what_it_refuses(tiny_model):
    servable = KerasServable(tiny_model, [1], guidance_scale=1.5)
    for label in (-1, 4):
        inputs = {"seed": SEEDS[:2], "label": np.array([0, label], "int32")}
        with pytest.raises(RequestError, match=rf"in \[0, 3\].*Received: {label}"):
            servable.check("serving_default", inputs)
    scales = np.array([np.nan], "float32")
    inputs = {"seed": SEEDS[:1], "label": LABELS[:1], "guidance_scale": scales}
    with pytest.raises(RequestError, match="`guidance_scale` must be of finite"):
        servable.check("generate_1_steps", inputs)
    for options, message in (
        ({"num_steps": [0]}, "num_steps"),
        ({"num_steps": [1, 1]}, "num_steps"),
        ({"value_range": (1, -1)}, "value_range"),
        ({"max_batch_size": 0}, "max_batch_size"),
    ):
        with pytest.raises(ValueError, match=message):
            KerasServable(tiny_model, **options)
