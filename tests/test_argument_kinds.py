"""Arguments of another kind than a constructor takes, and shapes that do not fit."""

import numpy as np
import pytest
from small_dit import small_dit

from keras_imm import callbacks, kernels, layers, time_mappings, weightings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: time_mappings.EtaDecrement(min_gap=None), r"`min_gap` must .*=None"),
        (lambda: weightings.ELBO(a=None), r"`a` must be at least 1.*=None"),
        (lambda: weightings.ELBO(a=True), r"`a` must be at least 1.*=True"),
        (lambda: weightings.ELBO(b="4"), r"`b` must be in .*='4'"),
        (lambda: kernels.RBF("x"), r"`bandwidth_power` must be in .*='x'"),
        (lambda: kernels.PseudoHuber(None), r"`c` must be in .*=None"),
        (
            lambda: callbacks.SampleGrid("a.png", num_samples=1, sampler="ddim"),
            r"`sampler` must be one of 'pushforward', 'restart'.*'ddim'",
        ),
        (
            lambda: callbacks.SampleGrid("a.png", num_samples=1, weights="mean"),
            r"`weights` must be one of 'ema', 'raw'.*'mean'",
        ),
    ],
)
def test_constructors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numpy_integers_are_integers():
    backbone = small_dit(
        image_shape=tuple(np.array([4, 4, 1])),
        num_classes=np.arange(3).max() + 1,
        hidden_size=np.int64(16),
    )
    assert type(backbone.get_config()["image_shape"][0]) is int
    assert type(backbone.num_classes) is type(backbone.hidden_size) is int


def test_layers_take_numpy_integers():
    for layer, x in (
        (layers.TimestepEmbedding(np.int64(8), np.int64(4)), np.ones(2)),
        (
            layers.PatchEmbedding(np.int64(2), np.int64(8)),
            np.ones((2, 4, 4, 1)),
        ),
    ):
        assert layer(x.astype("float32")).shape[-1] == 8
        assert type(layer.get_config()["hidden_size"]) is int
