"""Predicted memory, against closed forms, PyTorch's own count, and measured peaks."""

import keras
import numpy as np
import pytest
from small_dit import small_dit

import keras_imm
from keras_imm import memory

GIB = 2**30
LATENTS = {"image_shape": (32, 32, 4), "num_classes": 1000, "dtype": "mixed_bfloat16"}


def of_depths(preset, batch_size, depth, **kwargs):
    """The prediction; the blocks of a network are alike, so two small ones tell it."""
    one, two = (
        memory.training_memory(
            keras_imm.backbones.DiT.from_preset(preset, depth=few, **LATENTS | kwargs),
            batch_size,
        )
        for few in (1, 2)
    )
    return memory.TrainingMemory(
        *(a + (depth - 1) * (b - a) for a, b in zip(one, two, strict=True))
    )


@pytest.mark.slow("builds the published networks")
@pytest.mark.one_backend("the count is every backend's, below")
@pytest.mark.parametrize(
    ("preset", "depth", "batch_size", "measured"),
    # On an H100 on 2026-11-26: with PyTorch's jit_compile=True, then two with JAX.
    [
        ("dit_xl_2", 28, 128, 51.3),
        ("dit_xl_2", 28, 64, 33.4),
        ("dit_b_2", 12, 256, 27.9),
    ],
)
def test_measured_peaks(preset, depth, batch_size, measured):
    predicted = of_depths(preset, batch_size, depth).total / GIB
    assert predicted == pytest.approx(measured, rel=0.15)


def dit(depth=1, **kwargs):
    return keras_imm.backbones.DiT(
        (8, 8, 1), 2, 32, depth, 4, num_classes=3, dtype="mixed_bfloat16", **kwargs
    )


def test_what_a_transformer_block_keeps():
    """Of each token: 20 times its width, none of them twice."""
    one, two = (memory.training_memory(dit(depth), 5) for depth in (1, 2))
    tokens, width = 16, 32
    per_token = 1 + 2 + 3 + 1 + 1  # norm, modulation, attention, projection, gate
    per_token += 1 + 2 + 4 + 4 + 1 - 1  # the same of the MLP; its input is counted
    per_token += 1  # what comes in
    condition = 3 * width  # silu, and its six vectors, of which four are factors
    block = tokens * per_token * width
    if keras.backend.backend() == "tensorflow":  # computes attention by products
        block += 2 * 4 * tokens**2  # scores and weights of four heads
    kept = (two.activations - one.activations) / (5 * 2)
    assert block <= kept <= block + 7 * width + condition


def test_weights_and_optimizer():
    backbone = dit()
    found = memory.training_memory(backbone, 1, moments=1, averages=2)
    count = sum(int(np.prod(v.shape)) for v in backbone.trainable_variables)
    assert found.optimizer == 3 * 4 * count
    assert found.gradients == 4 * count
    assert found.half_precision_weights == 2 * count
    assert found.weights >= 4 * count
    assert found.total == sum(found)
    whole = memory.training_memory(small_dit(num_classes=3), 1)
    assert whole.half_precision_weights == 0


def test_activations_grow_with_the_batch_alone():
    backbone = dit()
    one, seven = (memory.training_memory(backbone, batch) for batch in (1, 7))
    assert seven.activations == 7 * one.activations
    assert seven[:4] == one[:4]


def test_recomputed_blocks_keep_their_inputs():
    tokens, width = 16, 32
    kept = [memory.training_memory(dit(d, remat=True), 1).activations for d in (3, 4)]
    assert kept[1] - kept[0] == 2 * tokens * width
    assert kept[1] < memory.training_memory(dit(4), 1).activations / 2


def test_blocks_that_keep_products():
    """12 numbers for each channel of a token, as the page of `DiT` says."""
    tokens, width = 16, 32
    kept = [
        memory.training_memory(dit(d, remat="products"), 1).activations for d in (3, 4)
    ]
    modulations = 6 * width
    expected = 12 * tokens * width + modulations
    if keras.backend.backend() == "tensorflow":  # computes attention by products
        expected += 4 * tokens**2
    assert kept[1] - kept[0] == 2 * expected


class Network(keras.layers.Layer):
    """Dense layers, perhaps a convolution, and products, on x alone."""

    def __init__(self, convolution=True):
        super().__init__()
        self.first = keras.layers.Dense(6, activation="relu")
        self.second = (
            keras.layers.Conv2D(3, 3, padding="same")
            if convolution
            else keras.layers.Dense(3)
        )
        self.last = keras.layers.Dense(2)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 6))
        self.last.build((*shape[:-1], 3))

    def call(self, x):
        h = self.second(self.first(x))
        h = keras.ops.reshape(h * keras.ops.sigmoid(h) + h, (-1, 4, 4, 3))
        return self.last(h)


def test_a_network_of_ones_own():
    network = Network()
    network.build((None, 4, 4, 2))
    x = keras.KerasTensor((1, 4, 4, 2))
    # x; relu's result, also the convolution's input; h and sigmoid(h); the last input.
    assert memory.activations(network, x) == 16 * (2 + 6 + 3 + 3 + 3)


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="PyTorch says what it keeps"
)
def test_what_pytorch_keeps():
    import torch

    network = Network(convolution=False)  # of whose input PyTorch's makes a copy
    network.build((None, 4, 4, 2))
    storages = {}

    def seen(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.ones((7, 4, 4, 2), requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda kept: kept):
        network(x)
    weights = {v.value.untyped_storage().data_ptr() for v in network.variables}
    kept = sum(t.numel() for key, t in storages.items() if key not in weights)
    assert memory.activations(network, keras.KerasTensor((7, 4, 4, 2))) == kept


def test_a_unet():
    unet = keras_imm.backbones.UNet(
        (16, 16, 3), model_channels=16, channel_mult=(1, 2), num_blocks=1
    )
    one, two = (memory.training_memory(unet, batch).activations for batch in (1, 2))
    assert two == 2 * one > 16 * 16 * 16 * 4 * 10


def test_the_fewest_parts_that_fit():
    backbone = dit()
    whole = memory.training_memory(backbone, 64)
    fixed = whole.total - whole.activations

    def parts(share, **kwargs):
        """Of a device in which that share of the activations fits."""
        available = fixed + share * whole.activations
        return memory.accumulation_that_fits(
            backbone, 64, int(available) + 1, headroom=0.0, **kwargs
        )

    assert [parts(share) for share in (1, 0.9, 0.5, 0.3, 1 / 64)] == [1, 2, 2, 4, 64]
    assert parts(0.5, rows_together=8) == 2
    assert parts(0.125, rows_together=8) == 8
    with pytest.raises(ValueError, match=r"`available` must be at least .* 8 samples"):
        parts(0.12, rows_together=8)
    with pytest.raises(ValueError, match=r"multiple of rows_together=3.*=64"):
        parts(1, rows_together=3)
    roomy = fixed + whole.activations
    assert memory.accumulation_that_fits(backbone, 64, roomy, headroom=0.15) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be"),
        ({"moments": -1}, "`moments` must be"),
        ({"averages": 1.5}, "`averages` must be"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        memory.training_memory(dit(), **{"batch_size": 1} | arguments)


def test_a_shape_must_be_known():
    with pytest.raises(ValueError, match="`data_shape` must be given"):
        memory.training_memory(Network(), 1)
