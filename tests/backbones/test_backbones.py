"""Every backbone keeps the contract, and so does a new one."""

import keras
from contracts.backbone import BackboneContract
from keras import ops

from keras_imm import backbones


class TestDiT(BackboneContract):
    @staticmethod
    def make(**kwargs):
        return backbones.DiT(
            image_shape=(8, 8, 1),
            patch_size=2,
            hidden_size=16,
            depth=2,
            num_heads=2,
            num_classes=3,
            **kwargs,
        )


class TestUNet(BackboneContract):
    image_shape = (8, 8, 2)
    num_classes = 0

    @staticmethod
    def make(**kwargs):
        return backbones.UNet(
            image_shape=(8, 8, 2),
            model_channels=8,
            channel_mult=(1, 2),
            num_blocks=1,
            attention_resolutions=(4,),
            **kwargs,
        )


@keras.saving.register_keras_serializable(package="tests")
class Convolutions(keras.layers.Layer):
    """Two convolutions, and a dense layer of times and label between them."""

    def __init__(self, num_classes, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.num_classes = num_classes
        options = {"padding": "same", "dtype": self.dtype_policy}
        self.first = keras.layers.Conv2D(8, 3, **options)
        self.condition = keras.layers.Dense(8, dtype=self.dtype_policy)
        self.last = keras.layers.Conv2D(1, 3, **options)

    def build(self, input_shapes):
        self.first.build((None, None, None, 1))
        self.condition.build((None, 3 + self.num_classes))
        self.last.build((None, None, None, 8))

    def call(self, inputs, training=None):
        x, c_t, c_s, labels = inputs
        times = ops.stack([c_t, c_s], axis=-1)
        labels = ops.one_hot(labels, self.num_classes + 1, dtype=times.dtype)
        h = self.condition(ops.concatenate([times, labels], axis=-1))
        h = ops.silu(self.first(x) + h[:, None, None])
        return ops.cast(self.last(h), x.dtype)

    def get_config(self):
        return super().get_config() | {"num_classes": self.num_classes}


class TestNewBackbone(BackboneContract):
    @staticmethod
    def make(**kwargs):
        return Convolutions(3, **kwargs)


def test_every_backbone_is_tested():
    tested = {type(contract.make()) for contract in BackboneContract.__subclasses__()}
    assert tested - {Convolutions} == {
        getattr(backbones, name)
        for name in backbones.__all__
        if isinstance(getattr(backbones, name), type)
    }
