"""Names of the U-Net's blocks are for files: they decide nothing."""

import numpy as np
import pytest
from keras import ops

from keras_imm.backbones import UNet


class Renamed(UNet):
    """The same network, whose blocks have other names."""

    def _block(self, name, multiple, **kwargs):
        number = len(getattr(self, "numbers", ()))
        self.numbers = (*getattr(self, "numbers", ()), number)
        return super()._block(f"part{number}", multiple, **kwargs)


@pytest.mark.parametrize("decoder_type", ["standard", "skip"])
def test_the_network_does_not_depend_on_names(decoder_type):
    networks = [
        kind(
            image_shape=(8, 8, 3),
            model_channels=8,
            channel_mult=(1, 2),
            num_blocks=1,
            attention_resolutions=(4,),
            decoder_type=decoder_type,
        )
        for kind in (UNet, Renamed)
    ]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 8, 8, 3)).astype("float32")
    inputs = [x, np.array([900.0, 300.0]), np.array([100.0, 0.0])]
    for network in networks:
        network(inputs)
    for a, b in zip(*(network.weights for network in networks), strict=True):
        assert a.shape == b.shape
        value = 0.3 * rng.standard_normal(a.shape).astype("float32")
        a.assign(value)
        b.assign(value)
    g, renamed = (ops.convert_to_numpy(network(inputs)) for network in networks)
    assert np.std(g) > 0
    np.testing.assert_array_equal(renamed, g)
    names = [{v.path.split("/")[1] for v in network.weights} for network in networks]
    assert not any("block" in name for name in names[1])
    assert any("block" in name for name in names[0])


def test_the_decoder_takes_every_feature_of_the_encoder():
    network = UNet(
        image_shape=(8, 8, 3), model_channels=8, channel_mult=(1, 2, 2), num_blocks=2
    )
    # The first convolution's, the blocks', and those of halved images.
    assert sum(network.takes_skip) == 1 + 3 * 2 + 2
    assert len(network.takes_skip) == len(network.decoder_blocks)
