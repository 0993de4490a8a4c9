"""The network that a file describes: every argument it stores, none of its own."""

import numpy as np
import pytest
from published_files import write_checkpoint

from keras_imm.backbones import DiT, UNet
from keras_imm.checkpoints import load_official

SETTINGS = {
    "s_embed": True,
    "noise_schedule": "fm",
    "f_type": "simple_edm",
    "temb_type": "identity",
    "sigma_data": 0.25,
    "eps": 0.01,
    "T": 0.99,
    "time_scale": 10.0,
}


def published(backbone):
    """Random weights for a backbone, by their published names."""
    backbone.build()
    rng = np.random.default_rng(0)
    tables = {table.name: table.values for table in backbone.published_tables()}
    weights = backbone.published_weights()
    drawn = {w.name: rng.standard_normal(w.shape).astype("f4") for w in weights}
    arrays = {**{n: v.astype("f4") for n, v in tables.items()}, **drawn}
    return {f"model.{name}": value for name, value in arrays.items()}


def reloaded(tmp_path, backbone, arguments, **options):
    path = tmp_path / "model.pkl"
    write_checkpoint(path, {**SETTINGS, **arguments}, published(backbone), **options)
    model = load_official(path)
    ignored = {"name", "seed"}
    expected, found = (
        {k: v for k, v in b.get_config().items() if k not in ignored}
        for b in (backbone, model.backbone)
    )
    assert found == expected
    return model


@pytest.mark.parametrize("qk_norm", [False, True])
def test_dit(tmp_path, qk_norm):
    backbone = DiT((4, 4, 3), 2, 16, 1, 2, 2.0, 5, qk_norm=qk_norm, dropout=0.3)
    arguments = {
        "model_type": "DiT",
        "img_resolution": 4,
        "img_channels": 3,
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
        "num_classes": 5,
        "qk_norm": qk_norm,
        "dropout": 0.3,
    }
    model = reloaded(tmp_path, backbone, arguments)
    found = model.sigma_data, model.min_time, model.max_time, model.time_scale
    assert found == (0.25, 0.01, 0.99, 10.0)


def test_unconditional_dit(tmp_path):
    backbone = DiT((4, 4, 3), 2, 16, 1, 2)
    arguments = {
        "model_type": "DiT",
        "img_resolution": 4,
        "img_channels": 3,
        "hidden_size": 16,
        "depth": 1,
        "num_heads": 2,
        "num_classes": 5,  # without a table of labels
    }
    reloaded(tmp_path, backbone, arguments)


def test_the_networks_arguments_win_over_the_models(tmp_path):
    backbone = DiT((4, 4, 3), 2, 16, 1, 2)
    network = {
        "patch_size": 2,
        "hidden_size": 16,
        "depth": 1,
        "num_heads": 2,
    }
    arguments = {
        "model_type": "DiT",
        "img_resolution": 4,
        "img_channels": 3,
        "hidden_size": 1152,
        "depth": 28,
    }
    reloaded(tmp_path, backbone, arguments, network_arguments=network)


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("encoder_type", ["standard", "skip", "residual"])
@pytest.mark.parametrize("decoder_type", ["standard", "skip"])
def test_unet(tmp_path, encoder_type, decoder_type):
    backbone = UNet(
        (8, 8, 3),
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_resolutions=(8,),
        embedding_type="fourier",
        encoder_type=encoder_type,
        decoder_type=decoder_type,
        resample_filter=(1, 3, 3, 1),
        channel_mult_noise=2,
        channel_mult_embedding=3,
        fourier_scale=4.0,
        num_classes=5,
        augmentation_dim=9,
        label_dropout=0.1,
        dropout=0.2,
    )
    arguments = {
        "model_type": "SongUNet",
        "img_resolution": 8,
        "img_channels": 3,
        "label_dim": 5,
        "augment_dim": 9,
        "model_channels": 8,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attn_resolutions": [8],
        "embedding_type": "fourier",
        "embedding_kwargs": {"scale": 4.0},
        "encoder_type": encoder_type,
        "decoder_type": decoder_type,
        "resample_filter": [1, 3, 3, 1],
        "channel_mult_noise": 2,
        "channel_mult_emb": 3,
        "label_dropout": 0.1,
        "dropout": 0.2,
    }
    reloaded(tmp_path, backbone, arguments)


@pytest.mark.slow("trains or builds for seconds")
def test_what_the_published_network_is_by_default(tmp_path):
    """Karras et al., 2022: one level more than IMM's CIFAR-10 network."""
    backbone = UNet(
        (8, 8, 3),
        model_channels=4,
        channel_mult=(1, 2, 2, 2),
        num_blocks=4,
        attention_resolutions=(16,),
        dropout=0.1,
    )
    arguments = {
        "model_type": "SongUNet",
        "img_resolution": 8,
        "img_channels": 3,
        "model_channels": 4,
    }
    reloaded(tmp_path, backbone, arguments)


def test_names_of_the_parts_that_no_golden_file_has():
    """As EDM's networks name them: `16x16_aux_down` and so on."""
    backbone = UNet(
        (8, 8, 3),
        model_channels=8,
        channel_mult=(1, 1),
        num_blocks=1,
        attention_resolutions=(),
        encoder_type="skip",
        decoder_type="skip",
    )
    names = {name for name in published(backbone) if "aux" in name}
    assert names == {
        "model.enc.4x4_aux_down.resample_filter",
        "model.enc.4x4_aux_skip.weight",
        "model.enc.4x4_aux_skip.bias",
        "model.dec.4x4_aux_norm.weight",
        "model.dec.4x4_aux_norm.bias",
        "model.dec.4x4_aux_conv.weight",
        "model.dec.4x4_aux_conv.bias",
        "model.dec.8x8_aux_up.resample_filter",
        "model.dec.8x8_aux_norm.weight",
        "model.dec.8x8_aux_norm.bias",
        "model.dec.8x8_aux_conv.weight",
        "model.dec.8x8_aux_conv.bias",
    }
