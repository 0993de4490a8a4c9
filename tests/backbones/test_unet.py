import itertools

import keras
import numpy as np
import pytest
import unet_formulas
from backends import FLOATS, dtype_of
from keras import ops

import keras_imm
from keras_imm.backbones import UNet
from keras_imm.backend.random_streams import random_states

# Counted by the published code: 32x32x3, two time inputs, unconditional.
PUBLISHED_PARAMETERS = {
    "ddpmpp_cifar10": 56_061_443,
    "ncsnpp_cifar10": 56_789_763,
}

# One size for most tests, because JAX compiles each operation once per shape. The
# image is not square, and there are levels enough for sums that run over them.
SMALL = {
    "image_shape": (8, 12, 3),
    "model_channels": 8,
    "channel_mult": (1, 2, 2),
    "num_blocks": 1,
    "attention_resolutions": (4,),
}
LABELLED = {"num_classes": 5, "augmentation_dim": 9}


def unet(**arguments):
    return UNet(**{**SMALL, **arguments})


def randomized(backbone, scale=0.3):
    """The backbone with random weights: a new one returns almost zero."""
    backbone.build()
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(scale * rng.standard_normal(variable.shape))
    return backbone


def inputs(batch=2, time_scale=1000.0, labelled=False, dtype="float32"):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, 8, 12, 3)).astype("float32")
    c_t = (time_scale * rng.uniform(0, 0.994, batch)).astype("float32")
    c_s = (c_t * rng.uniform(0, 1, batch)).astype("float32")
    x, c_t, c_s = (value.astype(dtype) for value in (x, c_t, c_s))
    if not labelled:
        return [x, c_t, c_s]
    labels = np.array([3, 5, 0, 4] * batch, "int32")[:batch]
    return [x, c_t, c_s, labels, rng.standard_normal((batch, 9)).astype(dtype)]


def output(backbone, arguments, **kwargs):
    return ops.convert_to_numpy(ops.cast(backbone(arguments, **kwargs), "float32"))


def assert_equals_the_equations(backbone, arguments):
    g = ops.convert_to_numpy(backbone(arguments))
    expected = unet_formulas.unet(backbone, *arguments)
    assert g.shape == expected.shape
    tolerance = unet_formulas.TOLERANCES[backbone.output_dtype]
    scale = np.abs(expected).max()
    np.testing.assert_allclose(g, expected, rtol=0, atol=tolerance * scale)


class TestEquations:
    @pytest.mark.slow("trains or builds for seconds")
    @pytest.mark.parametrize(
        ("encoder_type", "decoder_type", "embedding_type"),
        list(
            itertools.product(
                ("standard", "skip", "residual"),
                ("standard", "skip"),
                ("positional", "fourier"),
            )
        ),
    )
    def test_every_kind_of_network(self, encoder_type, decoder_type, embedding_type):
        positional = embedding_type == "positional"
        backbone = unet(
            encoder_type=encoder_type,
            decoder_type=decoder_type,
            embedding_type=embedding_type,
            channel_mult_noise=1 if positional else 2,
            resample_filter=(1, 1) if positional else (1, 3, 3, 1),
            **LABELLED,
        )
        time_scale = 1000.0 if positional else 1.0
        arguments = inputs(time_scale=time_scale, labelled=True)
        assert_equals_the_equations(randomized(backbone), arguments)

    @pytest.mark.parametrize("dtype", FLOATS[1:])
    def test_float64(self, dtype):
        backbone = randomized(unet(decoder_type="skip", dtype=dtype, **LABELLED))
        arguments = inputs(labelled=True, dtype=dtype)
        assert dtype_of(backbone(arguments)) == dtype
        assert_equals_the_equations(backbone, arguments)

    def test_a_level_of_one_pixel(self):
        backbone = unet(
            image_shape=(2, 2, 3),
            channel_mult=(1, 1),
            encoder_type="residual",
            resample_filter=(1, 3, 3, 1),
        )
        x, c_t, c_s = inputs()
        assert_equals_the_equations(randomized(backbone), [x[:, :2, :2], c_t, c_s])

    def test_many_blocks_and_one_level(self):
        backbone = unet(channel_mult=(1,), num_blocks=2, channel_mult_embedding=2)
        assert_equals_the_equations(randomized(backbone), inputs())


class TestPresets:
    @pytest.mark.slow("trains or builds for seconds")
    def test_parameter_counts_are_the_published_ones(self):
        counts = {preset: count_parameters(preset) for preset in PUBLISHED_PARAMETERS}
        # Nine labels of augmentation to 128 features of a time, without bias.
        augmented = count_parameters("ddpmpp_cifar10", augmentation_dim=9)
        noisier = count_parameters("ncsnpp_cifar10", augmentation_dim=9)
        # Forgets the variables without values, but also what JAX has compiled.
        keras.utils.clear_session()
        assert counts == PUBLISHED_PARAMETERS
        assert augmented - counts["ddpmpp_cifar10"] == 9 * 128
        assert noisier - counts["ncsnpp_cifar10"] == 9 * 128 * 2

    def test_overrides_win(self):
        backbone = UNet.from_preset(
            "ncsnpp_cifar10", (8, 8, 1), model_channels=16, dropout=0.0, num_classes=10
        )
        assert backbone.image_shape == (8, 8, 1)
        assert (backbone.model_channels, backbone.num_classes) == (16, 10)
        assert (backbone.dropout, backbone.encoder_type) == (0.0, "residual")

    def test_a_size_has_no_weights(self):
        """KerasHub's default would load some: here nothing says that there are any."""
        UNet.from_preset("ddpmpp_cifar10", model_channels=16, load_weights=False)
        with pytest.raises(ValueError, match=r"no weights.*FlowMapModel.from_preset"):
            UNet.from_preset("ddpmpp_cifar10", model_channels=16, load_weights=True)
        with pytest.raises(ValueError, match="`load_weights` must be True or False"):
            UNet.from_preset("ddpmpp_cifar10", model_channels=16, load_weights=None)

    def test_unknown_preset_lists_the_known_ones(self):
        with pytest.raises(ValueError, match=r"ddpmpp_cifar10.*ncsnpp.*='ddpmpp'"):
            UNet.from_preset("ddpmpp")


def count_parameters(preset, **overrides):
    # Variables made in this scope have shapes, but no memory.
    with keras.StatelessScope(initialize_variables=False):
        backbone = UNet.from_preset(preset, **overrides)
        backbone.build()
    return sum(int(np.prod(v.shape)) for v in backbone.trainable_variables)


def test_a_new_network_returns_almost_zero():
    keras.utils.set_random_seed(0)
    backbone = unet(num_classes=5)
    g = output(backbone, inputs(labelled=True)[:4])
    assert 0 < np.abs(g).max() < 1e-3
    for dense in (backbone.t_hidden, backbone.s_output, backbone.label_dense):
        limit = np.sqrt(6 / sum(dense.kernel.shape))
        largest = np.abs(ops.convert_to_numpy(dense.kernel)).max()
        assert 0.9 * limit < largest <= limit
        assert not ops.convert_to_numpy(dense.bias).any()


def test_attention_is_where_the_argument_says():
    """All encoder blocks of a level, the decoder's last; always its first block."""
    backbone = UNet(
        image_shape=(16, 32, 3),
        model_channels=8,
        channel_mult=(1, 2, 2),
        num_blocks=2,
        attention_resolutions=(16, 8),  # heights, not widths
    )
    blocks = backbone.encoder_blocks + backbone.decoder_blocks
    assert [block.name for block in blocks if block.attention] == [
        "encoder_16x16_block0",
        "encoder_16x16_block1",
        "encoder_8x8_block0",
        "encoder_8x8_block1",
        "decoder_4x4_in0",
        "decoder_8x8_block2",
        "decoder_16x16_block2",
    ]
    assert len(blocks) == 2 + 3 + 3 + 5 + 4 + 4
    none = unet(attention_resolutions=())
    blocks = none.encoder_blocks + none.decoder_blocks
    assert [block.name for block in blocks if block.attention] == ["decoder_2x2_in0"]


class TestLabels:
    def test_null_label_leaves_the_bias_alone(self):
        backbone = randomized(unet(num_classes=5))
        arguments = inputs()
        null = np.full(2, backbone.num_classes)
        before = output(backbone, [*arguments, null])
        backbone.label_dense.kernel.assign(np.ones(backbone.label_dense.kernel.shape))
        np.testing.assert_array_equal(output(backbone, [*arguments, null]), before)
        backbone.label_dense.bias.assign(np.ones(backbone.label_dense.bias.shape))
        assert np.abs(output(backbone, [*arguments, null]) - before).max() > 1e-2

    def test_labels_may_be_of_any_integer_type_or_whole_floats(self):
        backbone = randomized(unet(num_classes=5))
        labels = np.array([3, 5])
        expected = output(backbone, [*inputs(), labels.astype("int32")])
        for dtype in ("int64", "uint8", "float32"):
            g = output(backbone, [*inputs(), labels.astype(dtype)])
            np.testing.assert_array_equal(g, expected)

    def test_no_augmentation_labels_are_zeros(self):
        backbone = randomized(unet(augmentation_dim=9))
        without = output(backbone, inputs())
        zeros = output(backbone, [*inputs(), None, np.zeros((2, 9), "float32")])
        ones = output(backbone, [*inputs(), None, np.ones((2, 9), "float32")])
        np.testing.assert_array_equal(zeros, without)
        np.testing.assert_array_equal(output(backbone, [*inputs(), None, None]), zeros)
        assert np.abs(ones - zeros).max() > 1e-2

    def test_wrong_inputs(self):
        x, c_t, c_s = inputs()
        with pytest.raises(ValueError, match=r"`x` must have.*\(2, 12, 8, 3\)"):
            unet()([np.swapaxes(x, 1, 2), c_t, c_s])
        with pytest.raises(ValueError, match="`labels` must be left out or None"):
            unet()([x, c_t, c_s, np.zeros(2, "int32")])
        with pytest.raises(ValueError, match=r"`labels` must be given.*null.* is 5"):
            unet(num_classes=5)([x, c_t, c_s])
        with pytest.raises(ValueError, match=r"`augmentation_labels` must.*\(2, 4\)"):
            unet(augmentation_dim=9)([x, c_t, c_s, None, np.zeros((2, 4))])


class TestLabelDropout:
    BATCH = 400

    def embedded(self, label, training):
        """What the blocks are told of a batch of the same times and label."""
        backbone = randomized(unet(num_classes=5, label_dropout=0.3))
        times = np.full(self.BATCH, 0.5, "float32")
        labels = np.full(self.BATCH, label)
        told = backbone.embed(times, times, labels, None, training)
        return ops.convert_to_numpy(told)

    def test_a_dropped_label_is_the_null_label(self):
        label, null = self.embedded(2, False)[0], self.embedded(5, False)[0]
        assert np.abs(label - null).max() > 0.1
        told = self.embedded(2, training=True)
        kept, dropped = (
            np.isclose(told, row, atol=1e-5).all(axis=1) for row in (label, null)
        )
        assert (kept ^ dropped).all()
        # Four standard deviations of a binomial variable.
        spread = 4 * np.sqrt(0.3 * 0.7 / self.BATCH)
        assert dropped.mean() == pytest.approx(0.3, abs=spread)

    def test_inactive_outside_training(self):
        told = self.embedded(2, training=False)
        np.testing.assert_allclose(told, told[:1].repeat(self.BATCH, 0), atol=1e-5)

    def test_both_passes_of_a_training_step_drop_the_same(self, monkeypatch):
        backbone = unet(num_classes=5, label_dropout=0.5)
        model = keras_imm.IMM(backbone, label_dropout=0.0, group_size=2)
        batch_loss, step = model.batch_loss(), ops.convert_to_tensor(0)
        masks = []
        label_mask = UNet.label_mask

        def spy(self, one_hot):
            masks.append(label_mask(self, one_hot))
            return masks[-1]

        monkeypatch.setattr(UNet, "label_mask", spy)
        data = (inputs()[0], np.zeros(2, "int32"))
        data = keras.tree.map_structure(ops.convert_to_tensor, data)
        for _ in range(4):
            batch = batch_loss.draw(data, step)
            batch_loss.loss(batch, batch_loss.target(batch, step), step)
        masks = np.stack([ops.convert_to_numpy(mask)[:, 0] for mask in masks])
        targets, online = masks[::2], masks[1::2]
        np.testing.assert_array_equal(targets, online)
        assert set(targets.ravel()) == {0, 1}
        assert len(np.unique(targets, axis=0)) > 1


class TestDropout:
    def test_masks_follow_the_seed_states_alone(self):
        backbone = randomized(unet(dropout=0.3))
        states = random_states(backbone)
        blocks = backbone.encoder_blocks + backbone.decoder_blocks
        assert len(states) == len(blocks)
        before = [ops.convert_to_numpy(state).copy() for state in states]
        assert len(np.unique(before, axis=0)) == len(before)
        keras.utils.set_random_seed(1)
        first = output(backbone, inputs(), training=True)
        second = output(backbone, inputs(), training=True)
        assert np.abs(first - second).max() > 0.1
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        keras.utils.set_random_seed(2)
        replayed = output(backbone, inputs(), training=True)
        np.testing.assert_allclose(replayed, first, atol=1e-5)

    def test_seed_argument_decides_the_masks(self):
        first, same, other = (
            output(randomized(unet(dropout=0.3, seed=seed)), inputs(), training=True)
            for seed in (5, 5, 6)
        )
        np.testing.assert_allclose(first, same, atol=1e-5)
        assert np.abs(first - other).max() > 0.1

    def test_inactive_outside_training(self):
        expected = output(randomized(unet()), inputs())
        g = output(randomized(unet(dropout=0.3)), inputs())
        np.testing.assert_allclose(g, expected, atol=1e-5)


class TestPrecision:
    @pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
    def test_half_precision(self, policy):
        arguments = inputs(labelled=True)
        backbone = randomized(unet(channel_mult=(1,), dtype=policy, **LABELLED), 0.2)
        g = backbone(arguments)
        assert dtype_of(g) == "float32"
        expected = unet_formulas.unet(backbone, *arguments)
        difference = np.linalg.norm(ops.convert_to_numpy(g) - expected)
        assert 1e-4 < difference / np.linalg.norm(expected) < 5e-2

    @pytest.mark.parametrize(
        ("policy", "times"),
        [("mixed_float16", [994.0, 994.2]), ("mixed_bfloat16", [991.0, 993.0])],
    )
    def test_keeps_times_apart_that_half_precision_does_not(self, policy, times):
        backbone = randomized(unet(channel_mult=(1,), dtype=policy))
        x = np.zeros((2, 8, 12, 3), "float32")
        told = {}
        embed = backbone.embed
        backbone.embed = lambda *args: told.setdefault("embedding", embed(*args))
        backbone([x, np.array(times, "float32"), np.zeros(2, "float32")])
        result = ops.convert_to_numpy(ops.cast(told["embedding"], "float32"))
        expected = unet_formulas.embed(backbone, times, np.zeros(2))
        error = np.linalg.norm(result - expected)
        assert error < 0.25 * np.linalg.norm(expected[1] - expected[0])


def test_builds_without_a_call():
    backbone = unet(encoder_type="residual", decoder_type="skip", **LABELLED)
    backbone.build()
    names = [variable.path for variable in backbone.weights]
    backbone.build([(None, 8, 12, 3), (None,), (None,), (None,), (None, 9)])
    backbone(inputs(labelled=True))
    assert [variable.path for variable in backbone.weights] == names
    assert len(set(names)) == len(names)


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


def test_images_are_channels_last_whatever_the_default(channels_first):
    backbone = randomized(unet(encoder_type="skip", **LABELLED))
    assert_equals_the_equations(backbone, inputs(labelled=True))


def test_compiled_with_an_unknown_batch_size():
    backbone = randomized(unet(**LABELLED))
    symbolic = [
        keras.Input((8, 12, 3)),
        keras.Input(()),
        keras.Input(()),
        keras.Input((), dtype="int32"),
        keras.Input((9,)),
    ]
    model = keras.Model(symbolic, backbone(symbolic))
    assert model.output_shape == (None, 8, 12, 3)
    assert model.output.dtype == "float32"
    assert backbone([*symbolic[:4], None]).shape == (None, 8, 12, 3)
    with pytest.raises(ValueError, match=r"`x` must have.*\(None, 8, 8, 3\)"):
        backbone([keras.Input((8, 8, 3)), *symbolic[1:]])
    arguments = inputs(4, labelled=True)
    g = model.predict(arguments, batch_size=2, verbose=0)
    expected = unet_formulas.unet(backbone, *arguments)
    np.testing.assert_allclose(g, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow("trains or builds for seconds")
def test_a_model_trains_saves_and_generates(tmp_path):
    backbone = UNet(
        image_shape=(8, 8, 3),
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attention_resolutions=(8,),
        embedding_type="fourier",
        num_classes=5,
        dropout=0.1,
        label_dropout=0.1,
        seed=3,
    )
    model = keras_imm.IMM(backbone, parameterization="simple_edm", time_scale=1.0)
    model.compile(keras.optimizers.Adam(1e-2, epsilon=1e-8, use_ema=True))
    # As those of a published file: not what the seed gives.
    backbone.t_features.frequencies.assign([1.0, 2.0, 3.0, 4.0])
    rng = np.random.default_rng(0)
    images = (0.5 * rng.standard_normal((16, 8, 8, 3))).astype("float32")
    before = [ops.convert_to_numpy(v) for v in backbone.weights]
    history = model.fit(images, np.arange(16) % 5, batch_size=8, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for value, variable in zip(before, backbone.weights, strict=True):
        moved = (ops.convert_to_numpy(variable) != value).any()
        trained = variable.trainable or "seed_generator" in variable.name
        assert moved == trained, variable.path

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.backbone.get_config() == backbone.get_config()
    for value, variable in zip(backbone.weights, loaded.backbone.weights, strict=True):
        value, variable = map(ops.convert_to_numpy, (value, variable))
        np.testing.assert_array_equal(variable, value)
    generated = loaded.generate([0, 4, 5], noise=images[:3])
    assert generated.shape == (3, 8, 8, 3)
    assert np.isfinite(generated).all()


def test_config_round_trip():
    backbone = unet(
        embedding_type="fourier",
        encoder_type="residual",
        decoder_type="skip",
        resample_filter=[1, 3, 3, 1],
        channel_mult_noise=2,
        channel_mult_embedding=3,
        fourier_scale=8.0,
        label_dropout=0.1,
        dropout=0.2,
        seed=7,
        name="net",
        dtype="mixed_bfloat16",
        **LABELLED,
    )
    config = backbone.get_config()
    restored = UNet.from_config(config)
    assert restored.get_config() == config
    serialized = keras.saving.serialize_keras_object(backbone)
    assert serialized["registered_name"] == "keras_imm>UNet"
    again = keras.saving.deserialize_keras_object(serialized)
    assert again.get_config() == config
    for name, value in vars(backbone).items():
        if isinstance(value, (bool, int, float, str, tuple)):
            assert getattr(restored, name) == getattr(again, name) == value, name


def test_numpy_integers_are_integers():
    arguments = {
        "model_channels": np.int64(8),
        "channel_mult": list(np.array([1, 2])),
        "num_blocks": np.int32(1),
        "attention_resolutions": tuple(np.array([4])),
        "channel_mult_noise": np.uint8(1),
        "channel_mult_embedding": np.int64(4),
        "num_classes": np.arange(3).max() + 1,
        "augmentation_dim": np.int64(9),
        "seed": np.int64(2),
    }
    backbone = unet(**arguments)
    for name in arguments:
        value = getattr(backbone, name)
        values = value if isinstance(value, tuple) else (value,)
        assert all(type(element) is int for element in values), name
    backbone.build()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (8, 8)}, r"`image_shape` must be three.*=\(8, 8\)"),
        ({"image_shape": (10, 8, 3)}, "image height must be a multiple of 4.*=.10,"),
        ({"image_shape": (8, 6, 3)}, "image width must be a multiple of 4.*3 levels"),
        ({"model_channels": 2}, "`model_channels` must be .* at least 4.*=2"),
        ({"model_channels": 10}, "split into groups.*model_channels=10, .*so 10"),
        ({"model_channels": 36}, r"multiple of 32 above.*=\(2, 2, 2\), so 144"),
        ({"channel_mult": ()}, r"`channel_mult` must be a list of pos.*=\(\)"),
        ({"channel_mult": (1, 0)}, r"`channel_mult` must be a list.*=\(1, 0\)"),
        ({"channel_mult": (1, 1.5)}, r"`channel_mult` must be a list.*=\(1, 1.5\)"),
        ({"channel_mult": 2}, "`channel_mult` must be a list of positive.*=2"),
        ({"num_blocks": 0}, "`num_blocks` must be an integer of at least 1.*=0"),
        ({"attention_resolutions": 16}, "`attention_resolutions` must be a li.*=16"),
        ({"attention_resolutions": (True,)}, "`attention_resolutions` must.*True"),
        ({"embedding_type": "sine"}, "`embedding_type` must be one of 'pos.*='sine'"),
        ({"encoder_type": "full"}, "`encoder_type` must be one of .*'skip'.*='full'"),
        ({"decoder_type": "residual"}, "`decoder_type` must be one of.*='residual'"),
        ({"resample_filter": (1, 2, 1)}, r"`resample_filter` must be.*\(1, 2, 1\)"),
        ({"channel_mult_noise": 0}, "`channel_mult_noise` must be .* least 1.*=0"),
        ({"channel_mult_embedding": 0.5}, "`channel_mult_embedding` must be.*=0.5"),
        ({"fourier_scale": 0}, "`fourier_scale` must be .* above 0.*=0"),
        ({"num_classes": -1}, "`num_classes` must be an integer of at least 0.*=-1"),
        ({"augmentation_dim": None}, "`augmentation_dim` must be an int.*=None"),
        ({"label_dropout": 1.0}, r"`label_dropout` must be .*\[0, 1\).*=1.0"),
        ({"dropout": -0.1}, r"`dropout` must be a number in \[0, 1\).*=-0.1"),
        ({"seed": -1}, "`seed` must be an integer of at least 0.*=-1"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        UNet(**arguments)
