"""Counted arithmetic, against the papers, PyTorch's counter and closed forms."""

import gc
import weakref

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm import flops
from keras_imm.backbones.dit import PRESETS

SMALL_UNET = {
    "image_shape": (16, 16, 3),
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attention_resolutions": (8,),
    "num_classes": 3,
    "augmentation_dim": 9,
}


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="JAX compiles an initializer per shape; the count is every backend's, below",
)
@pytest.mark.parametrize(
    ("size", "billions"), [("s", 6.06), ("b", 23.01), ("l", 80.71), ("xl", 118.64)]
)
def test_published_sizes(size, billions):
    """The depth is extrapolated: the blocks of a network are alike."""
    preset = f"dit_{size}_2"
    one, two = (
        flops.multiply_adds(
            keras_imm.backbones.DiT.from_preset(
                preset, image_shape=(32, 32, 4), num_classes=1000, depth=depth
            )
        )
        for depth in (1, 2)
    )
    counted = one + (PRESETS[preset]["depth"] - 1) * (two - one)
    assert counted / 1e9 == pytest.approx(billions, rel=2e-3)


# What PyTorch's FlopCounterMode counts, halved; the test below it counts anew.
COUNTED_BY_TORCH = {"dit": 40448, "unet": 19499200}


def backbone(name):
    if name == "dit":
        return small_dit(image_shape=(8, 4, 3), qk_norm=True)
    return keras_imm.backbones.UNet(**SMALL_UNET)


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_every_backend_counts_what_torch_counts(name):
    assert flops.multiply_adds(backbone(name)) == COUNTED_BY_TORCH[name]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="PyTorch's own counter")
@pytest.mark.parametrize("name", ["dit", "unet"])
def test_torch_counts_the_same(name):
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    network = backbone(name)
    inputs = [ops.zeros(shape) for shape in ((1, *network.image_shape), (1,), (1,))]
    inputs.append(ops.zeros((1,), "int32"))
    if name == "unet":
        inputs.append(ops.zeros((1, 9)))
    network(inputs)
    counter = FlopCounterMode(display=False)
    # It does not see into the fused attention of a CPU.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        network(inputs)
    assert counter.get_total_flops() == 2 * COUNTED_BY_TORCH[name]


class Everything(keras.layers.Layer):
    """Products that no backbone of the package has."""

    def __init__(self):
        super().__init__()
        self.heads = keras.layers.MultiHeadAttention(2, 5)
        self.dense = keras.layers.EinsumDense("abc,cd->abd", (None, 7))

    def call(self, x):
        a = self.heads(x, x)
        b = self.dense(x)
        c = ops.einsum("...ij,...kj->...ik", b, b)
        return a, c, ops.tensordot(b, ops.transpose(b[0]), axes=1)


def test_attention_einsums_and_products():
    layer = Everything()
    layer(np.zeros((3, 4, 6), "float32"))
    counted = flops.layer_multiply_adds(layer, keras.KerasTensor((3, 4, 6)))
    projections = 4 * (3 * 4 * 6 * 10)  # query, key, value, output
    attention = 2 * (3 * 2 * 4 * 4 * 5)
    dense = 3 * 4 * 6 * 7
    einsum = 3 * 4 * 4 * 7
    tensordot = (3 * 4) * 7 * 4
    assert counted == projections + attention + dense + einsum + tensordot


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (keras.layers.Conv2D(6, 3, groups=2), 4 * 6 * 6 * (9 * 2)),
        (keras.layers.Conv2D(6, 3, strides=2, padding="same"), 3 * 4 * 6 * (9 * 4)),
        (keras.layers.Conv2DTranspose(6, 3, strides=2), 6 * 8 * 4 * (9 * 6)),
        (keras.layers.DepthwiseConv2D(3), 4 * 6 * 4 * 9),
        (keras.layers.SeparableConv2D(6, 3), 4 * 6 * (4 * 9 + 4 * 6)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_convolutions(layer, expected):
    layer.build((None, 6, 8, 4))
    assert flops.layer_multiply_adds(layer, keras.KerasTensor((1, 6, 8, 4))) == expected


def test_a_functional_backbone_and_shared_layers():
    x = keras.Input((5,))
    times = [keras.Input(()), keras.Input(())]
    shared = keras.layers.Dense(5)
    told = keras.layers.Concatenate()([t[:, None] for t in times] + [shared(shared(x))])
    network = keras.Model([x, *times], keras.layers.Dense(5)(told))
    assert flops.multiply_adds(network, data_shape=(5,)) == 2 * 25 + 7 * 5


@pytest.mark.slow("trains or builds for seconds")
def test_counting_is_forgotten():
    """Layers would keep every symbolic call, and the tensors in it, for ever."""
    network = Everything()
    network(np.zeros((3, 4, 6), "float32"))
    given = keras.KerasTensor((3, 4, 6))
    alive = weakref.ref(given)
    assert flops.layer_multiply_adds(network, given) > 0
    del given
    gc.collect()
    assert alive() is None
    kept = keras.KerasTensor((3, 4, 6))
    alive = weakref.ref(kept)
    network(kept)
    del kept
    gc.collect()
    assert alive() is not None  # as Keras's own calls are


def test_a_step_is_four_passes_of_two_operations():
    assert flops.training_step_flops(10, batch_size=3) == 240


def test_what_cannot_be_counted_is_named():
    class Opaque(keras.layers.Layer):
        def call(self, inputs):
            return np.asarray(inputs[0]).sum()

    opaque = Opaque(name="mystery")
    opaque.built = True
    with pytest.raises(ValueError, match="'mystery', a Opaque"):
        flops.multiply_adds(opaque, data_shape=(2,))
    with pytest.raises(ValueError, match="`data_shape`"):
        flops.multiply_adds(opaque)
