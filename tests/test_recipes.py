import keras
import numpy as np
import pytest
from small_dit import small_dit

import keras_imm
from keras_imm import recipes
from keras_imm.backbones import dit, unet
from keras_imm.checkpoints.hub import PUBLISHED

pytestmark = pytest.mark.any_backend("settings, of what is tested on each")

# Table 5 of the paper, transcribed row by row: not read from the package.
COLUMNS = (
    "cifar10",
    "imagenet256_dit_s_2",
    "imagenet256_dit_b_2",
    "imagenet256_dit_l_2",
    "imagenet256_dit_xl_2",
    "imagenet256_dit_xl_2_stride",
)
TABLE_5 = {
    "parameterization": ["simple_edm"] + 5 * ["euler_fm"],
    "schedule": 6 * ["flow_matching"],
    "second_time": 5 * ["s"] + ["stride"],
    "optimizer": ["RAdam"] + 5 * ["AdamW"],
    "learning_rate": 6 * [1e-4],
    "beta_1": 6 * [0.9],
    "beta_2": 6 * [0.999],
    "epsilon": 6 * [1e-8],
    "batch_size": 6 * [4096],
    "group_size": 6 * [4],
    "iterations": [400_000] + 5 * [1_200_000],
    "k": [15] + 5 * [12],
    "min_gap": 5 * [0.0] + [1e-4],
    "min_time": [0.006] + 5 * [0.0],
    "max_time": 6 * [0.994],
    "a": 5 * [1] + [2],
    "b": [5] + 5 * [4],
    "ema_momentum": 6 * [0.9999],
    "label_dropout": [0.0] + 5 * [0.1],
    "dropout": [0.2] + 5 * [0.0],
    "augmentation": [True] + 5 * [False],
    "time_grid": [(1.4,)] + 5 * ["uniform"],
    "guidance_scale": [None] + 5 * [1.5],
    "num_classes": [0] + 5 * [1000],
    "image_shape": [(32, 32, 3)] + 5 * [(32, 32, 4)],
    "fid": [
        ((1, 3.20), (2, 1.98)),
        ((8, 20.36),),
        ((8, 9.69),),
        ((8, 2.80),),
        ((8, 2.13),),
        ((1, 8.05), (2, 3.99), (4, 2.51), (8, 1.99), (16, 1.90)),
    ],
}
SMALL_DIT = {"hidden_size": 16, "depth": 1, "num_heads": 2, "patch_size": 2}
SMALL_UNET = {
    "model_channels": 4,
    "channel_mult": (1,),
    "num_blocks": 1,
    "attention_resolutions": (),
}


@pytest.fixture
def small_networks(monkeypatch):
    for preset in dit.PRESETS:
        monkeypatch.setitem(dit.PRESETS, preset, SMALL_DIT)
    monkeypatch.setitem(unet.PRESETS, "ddpmpp_cifar10", SMALL_UNET)


def test_names():
    assert tuple(recipes.names()) == COLUMNS


@pytest.mark.parametrize("row", TABLE_5)
def test_table_5(row):
    found = [getattr(recipes.get(name), row) for name in COLUMNS]
    assert found == TABLE_5[row]


@pytest.mark.parametrize("name", COLUMNS)
def test_build(name, small_networks):
    recipe = recipes.get(name)
    model = recipes.build(name, image_shape=(4, 4, recipe.image_shape[-1]), seed=3)
    optimizer = model.optimizer
    assert type(optimizer).__name__ == recipe.optimizer
    assert float(keras.ops.convert_to_numpy(optimizer.learning_rate)) == np.float32(
        1e-4
    )
    assert (optimizer.beta_1, optimizer.beta_2) == (recipe.beta_1, recipe.beta_2)
    assert optimizer.epsilon == recipe.epsilon
    assert (optimizer.use_ema, optimizer.ema_momentum) == (True, recipe.ema_momentum)
    assert not optimizer.weight_decay
    assert (model.time_mapping.k, model.time_mapping.min_gap) == (
        recipe.k,
        recipe.min_gap,
    )
    assert (model.weighting.a, model.weighting.b) == (recipe.a, recipe.b)
    for attribute in (
        *("second_time", "time_scale", "group_size", "sigma_data"),
        *("min_time", "max_time", "label_dropout", "num_classes"),
    ):
        assert getattr(model, attribute) == getattr(recipe, attribute)
    assert (model.augmentation is not None) == recipe.augmentation
    assert model.backbone.dropout == recipe.dropout
    assert type(model.backbone).__name__ == recipe.backbone
    assert model.seed == model.backbone.seed == 3
    default = keras_imm.IMM(
        model.backbone,
        schedule=recipe.schedule,
        parameterization=recipe.parameterization,
        kernel=recipe.kernel,
    )
    for piece in ("schedule", "parameterization", "kernel"):
        assert type(getattr(model, piece)) is type(getattr(default, piece))


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("name", ["cifar10", "imagenet256_dit_xl_2_stride"])
def test_a_built_model_trains_and_samples(name, small_networks):
    shape = (4, 4, 3) if name == "cifar10" else (4, 4, 4)
    model = recipes.build(name, image_shape=shape, accumulation_steps=2)
    rng = np.random.default_rng(0)
    images = 0.5 * rng.standard_normal((8, *shape)).astype("float32")
    labels = [] if name == "cifar10" else [rng.integers(0, 1000, 8)]
    history = model.fit(images, *labels, batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert model.generate(num_samples=2, num_steps=1).shape == (2, *shape)


def test_arguments_of_the_network_win_over_its_preset_and_the_recipe():
    options = {"hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
    model = recipes.build("imagenet256_dit_s_2", network=options)
    network = model.backbone
    assert (network.hidden_size, network.depth, network.num_heads) == (16, 1, 2)
    assert network.patch_size == 2 and model.num_classes == 5


@pytest.mark.slow("trains or builds for seconds")
def test_the_published_sizes():
    model = recipes.build("cifar10")
    # The network of Table 5 (56,061,443), told of the augmentation: 9 x 128 more.
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert count == 56_061_443 + 9 * 128
    for name in COLUMNS[1:]:
        recipe = recipes.get(name)
        assert recipe.preset == name.removeprefix("imagenet256_").removesuffix(
            "_stride"
        )


def test_what_equals_the_models_defaults_is_passed_on(small_networks):
    model = recipes.build(
        "cifar10",
        image_shape=(4, 4, 3),
        schedule="cosine",
        time_scale=7.0,
        sigma_data=0.3,
        group_size=2,
        kernel="rbf",
        accumulation_steps=2,
        seed=3,
    )
    assert type(model.schedule) is keras_imm.schedules.Cosine
    assert type(model.kernel) is keras_imm.kernels.RBF
    assert (model.time_scale, model.sigma_data) == (7.0, 0.3)
    assert (model.group_size, model.accumulation_steps) == (2, 2)
    assert (model.augmentation.probability, model.augmentation.seed) == (0.12, 3)


def test_the_small_budget_is_what_was_measured():
    """What examples/imm_flags.py makes by default, with its smallest gap."""
    model = keras_imm.IMM(small_dit(), **recipes.SMALL_BUDGET)
    objective, flow_map = model.objective, model.get_config()
    assert repr(objective.time_mapping) == "EtaDecrement(k=12, min_gap=0.005)"
    assert objective.flow_matching_share == 0.25 and objective.group_size == 4
    assert (flow_map["second_time"], flow_map["time_scale"]) == ("stride", 1.0)
    assert type(objective.times).__name__ == "LogitNormal"


def test_overrides(small_networks):
    model = recipes.build(
        "imagenet256_dit_s_2",
        image_shape=(4, 4, 1),
        num_classes=10,
        k=9,
        learning_rate=1e-3,
        dtype="mixed_bfloat16",
    )
    assert (model.num_classes, model.time_mapping.k) == (10, 9)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == (
        np.float32(1e-3)
    )
    assert model.backbone.compute_dtype == "bfloat16"
    assert recipes.get("imagenet256_dit_s_2").k == 12


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: recipes.build("imagenet"),
            "`name` must be one of cifar10, .*'imagenet'",
        ),
        (lambda: recipes.get(None), "`name` must be one of .*name=None"),
        (
            lambda: recipes.build("cifar10", lr=1e-3),
            "A recipe has no 'lr'; it has dataset, .*Received: lr=0.001",
        ),
        (lambda: recipes.describe("cifar10", lr=1), "A recipe has no 'lr'"),
        (
            lambda: recipes.build("cifar10", backbone="ViT"),
            "`backbone` must be one of 'UNet', 'DiT'.*'ViT'",
        ),
        (
            lambda: recipes.build("cifar10", optimizer="SGD"),
            "`optimizer` must be one of 'RAdam', 'AdamW'.*'SGD'",
        ),
        (lambda: recipes.build("cifar10", preset="dit_s_2"), "`preset` must be one of"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_describe(capsys):
    table = recipes.describe("imagenet256_dit_xl_2_stride")
    assert capsys.readouterr().out == table + "\n"
    lines = [line.split("  ") for line in table.splitlines()]
    shown = {line[1]: line[-1].strip() for line in lines[1:]}
    assert table.startswith("imagenet256_dit_xl_2_stride\n")
    assert shown["preset"] == "dit_xl_2"
    assert shown["batch size"] == "4,096"
    assert shown["min gap"] == "0.0001"
    assert "1.99 in 8 steps" in table
    assert "8.05 in 1 step," in table
    assert recipes.describe("cifar10", k=3) != recipes.describe("cifar10")


@pytest.mark.parametrize(
    ("checkpoint", "recipe"),
    [
        ("cifar10", "cifar10"),
        ("imagenet256_s_a1", "imagenet256_dit_xl_2"),
        ("imagenet256_ts_a2", "imagenet256_dit_xl_2_stride"),
    ],
)
def test_published_checkpoints_know_their_recipe(checkpoint, recipe):
    published = PUBLISHED[checkpoint]
    assert published.recipe == recipe
    row = {name: values[COLUMNS.index(recipe)] for name, values in TABLE_5.items()}
    arguments = published.arguments()
    mapping, weighting = arguments.pop("time_mapping"), arguments.pop("weighting")
    assert (mapping.k, mapping.min_gap) == (row["k"], row["min_gap"])
    assert (weighting.a, weighting.b) == (row["a"], row["b"])
    assert arguments == {name: row[name] for name in ("second_time", "label_dropout")}
