from pathlib import Path

import numpy as np
import pytest
from keras import ops

from keras_imm.backbones import DiT
from keras_imm.checkpoints.published_weights import assign_published_weights

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.fixture
def state():
    with np.load(GOLDEN / "dit_euler_fm_s.npz") as file:
        return {
            key.removeprefix("weight/"): file[key]
            for key in file.files
            if key.startswith("weight/")
        }


def build_backbone(**arguments):
    backbone = DiT((8, 8, 4), 2, 48, 2, 4, num_classes=10, **arguments)
    backbone.build()
    return backbone


def values(backbone):
    return [ops.convert_to_numpy(v).copy() for v in backbone.trainable_variables]


def test_every_variable_is_assigned(state):
    backbone = build_backbone()
    for variable in backbone.trainable_variables:
        variable.assign(np.full(variable.shape, np.nan))
    assign_published_weights(backbone, state)
    assert all(np.isfinite(value).all() for value in values(backbone))
    assigned = sum(value.size for value in values(backbone))
    table = state["model.pos_embed"].size
    assert assigned == sum(value.size for value in state.values()) - table


def test_prefix_may_be_missing(state):
    with_prefix, without_prefix = build_backbone(), build_backbone()
    assign_published_weights(with_prefix, state)
    assign_published_weights(
        without_prefix,
        {name.removeprefix("model."): value for name, value in state.items()},
    )
    for value, expected in zip(
        values(without_prefix), values(with_prefix), strict=True
    ):
        np.testing.assert_array_equal(value, expected)


def test_query_and_key_normalization(state):
    rng = np.random.default_rng(0)
    extra = {
        f"model.blocks.{block}.attn.{norm}.{kind}": rng.standard_normal(12)
        for block in range(2)
        for norm in ("q_norm", "k_norm")
        for kind in ("weight", "bias")
    }
    backbone = build_backbone(qk_norm=True)
    assign_published_weights(backbone, {**state, **extra})
    key_norm = backbone.blocks[1].attention.key_norm
    for variable, kind in ((key_norm.gamma, "weight"), (key_norm.beta, "bias")):
        np.testing.assert_allclose(
            ops.convert_to_numpy(variable),
            extra[f"model.blocks.1.attn.k_norm.{kind}"],
            rtol=1e-6,
        )


def remove(state, name):
    del state[name]


def flatten(state, name):
    state[name] = state[name].ravel()


def rename(state, name):
    state[name + "s"] = state[name]


def shift(state, name):
    state[name] = state[name] + 1e-5


@pytest.mark.parametrize(
    ("spoil", "name", "message"),
    [
        (
            remove,
            "model.final_layer.adaLN_modulation.1.bias",
            r"'final_layer.adaLN_modulation.1.bias' of shape \(96,\) is missing",
        ),
        (
            flatten,
            "model.final_layer.linear.weight",
            r"'final_layer.linear.weight' must have shape \(16, 48\).*\(768,\)",
        ),
        (
            rename,
            "model.blocks.1.mlp.fc2.bias",
            "fc2.biass' belongs to no variable",
        ),
        (remove, "model.pos_embed", r"'pos_embed' of shape \(1, 16, 48\) is missing"),
        (shift, "model.pos_embed", "'pos_embed' must be the fixed.*differs by 1e-05"),
    ],
)
def test_a_weight_that_does_not_fit_changes_nothing(state, spoil, name, message):
    backbone = build_backbone()
    before = values(backbone)
    spoil(state, name)
    with pytest.raises(ValueError, match=message):
        assign_published_weights(backbone, state)
    for value, expected in zip(values(backbone), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_the_first_weight_that_does_not_fit_is_named(state):
    remove(state, "model.blocks.0.attn.qkv.weight")
    remove(state, "model.blocks.1.attn.qkv.weight")
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.qkv\.weight'"):
        assign_published_weights(build_backbone(), state)


def test_depth_that_differs_names_the_surplus(state):
    with pytest.raises(ValueError, match=r"'blocks.1.* belongs to no variable"):
        assign_published_weights(DiT((8, 8, 4), 2, 48, 1, 4, num_classes=10), state)
