import json
from pathlib import Path

import keras
import numpy as np
import pytest
from backends import value_and_gradient
from keras import ops

import keras_imm
from keras_imm.backbones import DiT
from keras_imm.checkpoints.published_weights import assign_published_weights

GOLDEN = Path(__file__).parents[1] / "data" / "golden"

# Counted by the published code: 32x32x4, 1000 classes, two time inputs.
PUBLISHED_PARAMETERS = {
    "dit_s_2": 33_105_424,
    "dit_b_2": 131_091_472,
    "dit_l_2": 459_137_040,
    "dit_xl_2": 676_440_592,
    "dit_s_4": 33_142_336,
    "dit_b_4": 131_165_248,
    "dit_l_4": 459_235_392,
    "dit_xl_4": 676_551_232,
    "dit_s_8": 33_289_984,
    "dit_b_8": 131_460_352,
    "dit_l_8": 459_628_800,
    "dit_xl_8": 676_993_792,
}


# One size for most tests, because JAX compiles each operation once per shape.
SMALL = {
    "image_shape": (8, 8, 4),
    "patch_size": 2,
    "hidden_size": 48,
    "depth": 2,
    "num_heads": 4,
}


def dit(**arguments):
    return DiT(**{**SMALL, **arguments})


def randomized(backbone, scale=0.2):
    """The backbone with random weights: a new one returns zero."""
    backbone.build()
    rng = np.random.default_rng(0)
    for variable in backbone.trainable_variables:
        variable.assign(scale * rng.standard_normal(variable.shape))
    return backbone


def inputs(batch=4, image_shape=(8, 8, 4), num_classes=0):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((batch, *image_shape)).astype("float32")
    c_t = rng.uniform(0, 994, batch).astype("float32")
    c_s = (c_t * rng.uniform(0, 1, batch)).astype("float32")
    if num_classes == 0:
        return [x, c_t, c_s]
    return [x, c_t, c_s, rng.integers(0, num_classes + 1, batch).astype("int32")]


def output(backbone, arguments, **kwargs):
    return ops.convert_to_numpy(ops.cast(backbone(arguments, **kwargs), "float32"))


class TestGolden:
    def load(self, name):
        with np.load(GOLDEN / f"{name}.npz") as file:
            golden = dict(file)
        weights = {
            key.removeprefix("weight/"): value
            for key, value in golden.items()
            if key.startswith("weight/")
        }
        backbone = dit(num_classes=10)
        assign_published_weights(backbone, weights)
        return backbone, golden, json.loads(str(golden["config_json"]))

    def times(self, golden, config):
        t, s = golden["t"], golden["s"]
        second = t - s if config["temb_type"] == "stride" else s
        return config["time_scale"] * t, config["time_scale"] * second

    def scaled_input(self, golden, config):
        """c_in(t) x with c_in = 1 / (sigma_d sqrt(alpha^2 + sigma^2))."""
        t = golden["t"]
        if config["noise_schedule"] == "fm":
            norm = np.hypot(1 - t, t)
        else:  # cosine: alpha^2 + sigma^2 = 1
            norm = np.ones_like(t)
        c_in = 1 / (config["sigma_data"] * norm)
        x = np.moveaxis(golden["x"], 1, -1) * c_in[:, None, None, None]
        return x.astype("float32")

    @pytest.mark.parametrize(
        "name",
        [
            "dit_euler_fm_stride",
            "dit_euler_fm_s",
            "dit_simple_edm_cosine",
            "dit_identity_fm",
        ],
    )
    def test_network_output(self, name):
        backbone, golden, config = self.load(name)
        x = self.scaled_input(golden, config)
        g = output(backbone, [x, *self.times(golden, config), golden["labels"]])
        expected = np.moveaxis(golden["network_output"], 1, -1)
        np.testing.assert_allclose(g, expected, rtol=0, atol=1e-5)

    def test_null_label_is_num_classes(self):
        backbone, golden, config = self.load("dit_euler_fm_s")
        x = self.scaled_input(golden, config)
        null = np.full(4, backbone.num_classes)
        g = output(backbone, [x, *self.times(golden, config), null])
        # Euler-FM: f = x - (t - s) sigma_d G.
        step = (golden["t"] - golden["s"]) * config["sigma_data"]
        flow_map = golden["x"] - step[:, None, None, None] * np.moveaxis(g, -1, 1)
        np.testing.assert_allclose(
            flow_map, golden["flow_map_unconditional"], rtol=0, atol=1e-5
        )


class TestPresets:
    def test_overrides_win(self):
        backbone = DiT.from_preset(
            "dit_s_4", (8, 8, 3), depth=1, dropout=0.1, remat=True
        )
        assert (backbone.hidden_size, backbone.patch_size) == (384, 4)
        assert (backbone.depth, backbone.dropout) == (1, 0.1)
        assert backbone.remat

    def test_a_size_has_no_weights(self):
        """KerasHub's default would load some: here nothing says that there are any."""
        DiT.from_preset("dit_s_4", (8, 8, 3), depth=1, load_weights=False)
        with pytest.raises(ValueError, match=r"no weights.*FlowMapModel.from_preset"):
            DiT.from_preset("dit_s_4", (8, 8, 3), depth=1, load_weights=True)
        with pytest.raises(ValueError, match="`load_weights` must be True or False"):
            DiT.from_preset("dit_s_4", (8, 8, 3), depth=1, load_weights=None)

    def test_unknown_preset_lists_the_known_ones(self):
        with pytest.raises(ValueError, match=r"dit_s_2.*dit_xl_8.*='dit_xxl_2'"):
            DiT.from_preset("dit_xxl_2", image_shape=(32, 32, 4))


def test_a_new_network_returns_exactly_zero():
    g = output(dit(num_classes=10), inputs(num_classes=10))
    np.testing.assert_array_equal(g, np.zeros((4, 8, 8, 4)))


def test_label_table_initialisation():
    keras.utils.set_random_seed(0)
    backbone = dit(num_classes=100)
    backbone.build()
    table = ops.convert_to_numpy(backbone.label_embedding.embeddings)
    assert table.shape == (101, 48)
    assert np.std(table) == pytest.approx(0.02, rel=0.05)


def test_neighbouring_pixels_stay_neighbours_on_a_non_square_image():
    # One block without attention between tokens: each patch of G depends on its own
    # patch of x alone.
    shape = (4, 16, 4)
    backbone = randomized(dit(image_shape=shape, depth=1))
    backbone.blocks[0].attention.projection.kernel.assign(np.zeros((48, 48)))
    arguments = inputs(image_shape=shape)
    before = output(backbone, arguments)
    arguments[0][0, 3, 12] += 1.0  # in the patch of rows 2-3, columns 12-13
    changed = (output(backbone, arguments) != before).any(axis=0).any(axis=-1)
    expected = np.zeros(shape[:2], bool)
    expected[2:4, 12:14] = True
    np.testing.assert_array_equal(changed, expected)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(policy):
    arguments = inputs(num_classes=10)
    expected = output(randomized(dit(num_classes=10), 0.1), arguments)
    backbone = randomized(dit(num_classes=10, dtype=policy), 0.1)
    g = backbone(arguments)
    assert keras.backend.standardize_dtype(g.dtype) == "float32"
    difference = np.linalg.norm(ops.convert_to_numpy(g) - expected)
    assert 1e-4 < difference / np.linalg.norm(expected) < 3e-2


def test_unconditional_takes_no_labels_or_none():
    backbone = randomized(dit())
    g = output(backbone, inputs())
    np.testing.assert_array_equal(output(backbone, [*inputs(), None]), g)
    with pytest.raises(ValueError, match="`labels` must be left out or None"):
        backbone([*inputs(), np.zeros(4, "int32")])


def test_builds_without_a_call():
    backbone = dit(num_classes=10)
    backbone.build()
    names = [variable.path for variable in backbone.weights]
    backbone.build([(None, 8, 8, 4), (None,), (None,), (None,)])
    backbone(inputs(num_classes=10))
    assert [variable.path for variable in backbone.weights] == names
    assert len(set(names)) == len(names)


def test_compiled_with_an_unknown_batch_size():
    backbone = randomized(dit(num_classes=10, qk_norm=True))
    symbolic = [
        keras.Input((8, 8, 4)),
        keras.Input(()),
        keras.Input(()),
        keras.Input((), dtype="int32"),
    ]
    model = keras.Model(symbolic, backbone(symbolic))
    assert model.output_shape == (None, 8, 8, 4)
    with pytest.raises(ValueError, match=r"`x` must have.*\(None, 8, 12, 4\)"):
        backbone([keras.Input((8, 12, 4)), *symbolic[1:]])
    with pytest.raises(ValueError, match="`labels` must be given"):
        backbone(symbolic[:3])
    arguments = inputs(7, num_classes=10)
    g = model.predict(arguments, batch_size=4, verbose=0)
    expected = output(backbone, arguments)
    np.testing.assert_allclose(g, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_saved_and_loaded_without_custom_objects(tmp_path):
    backbone = randomized(
        dit(mlp_ratio=3, num_classes=10, qk_norm=True, dropout=0.1, seed=3, remat=True)
    )
    backbone.save(tmp_path / "dit.keras")
    loaded = keras.saving.load_model(tmp_path / "dit.keras")
    assert loaded.get_config() == backbone.get_config()
    assert loaded.remat
    arguments = inputs(num_classes=10)
    np.testing.assert_allclose(
        output(loaded, arguments), output(backbone, arguments), atol=1e-6
    )


class TestDropout:
    def states(self, backbone):
        return [
            layer.seed_generator.state
            for layer in backbone._flatten_layers()
            if isinstance(layer, keras.layers.Dropout)
        ]

    def test_masks_follow_the_seed_states_alone(self):
        backbone = randomized(dit(dropout=0.3))
        states = self.states(backbone)
        assert len(states) == 3 * backbone.depth
        before = [ops.convert_to_numpy(state).copy() for state in states]
        keras.utils.set_random_seed(1)
        first = output(backbone, inputs(), training=True)
        second = output(backbone, inputs(), training=True)
        assert np.abs(first - second).max() > 0.1
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        keras.utils.set_random_seed(2)
        replayed = output(backbone, inputs(), training=True)
        np.testing.assert_allclose(replayed, first, atol=1e-6)

    def test_seed_argument_decides_the_masks(self):
        first, same, other = (
            output(randomized(dit(dropout=0.3, seed=seed)), inputs(), training=True)
            for seed in (5, 5, 6)
        )
        np.testing.assert_allclose(first, same, atol=1e-6)
        assert np.abs(first - other).max() > 0.1

    def test_inactive_outside_training(self):
        expected = output(randomized(dit()), inputs())
        g = output(randomized(dit(dropout=0.3)), inputs())
        np.testing.assert_allclose(g, expected, atol=1e-6)

    def test_active_in_a_stateless_call(self):
        backbone = randomized(dit(dropout=0.3))
        trainable = [v.value for v in backbone.trainable_variables]
        other = [v.value for v in backbone.non_trainable_variables]
        g, _ = backbone.stateless_call(trainable, other, inputs(), training=True)
        assert np.abs(ops.convert_to_numpy(g) - output(backbone, inputs())).max() > 0.1


class TestRemat:
    def trained(self, accumulation_steps=1, **arguments):
        """Losses, and all variables, of two training steps."""
        backbone = randomized(dit(**arguments))
        model = keras_imm.IMM(backbone, accumulation_steps=accumulation_steps)
        model.compile(keras.optimizers.SGD(1.0))
        x, *_ = inputs(8)
        losses = [float(model.train_on_batch(x)) for _ in range(2)]
        return losses, [ops.convert_to_numpy(v) for v in model.variables]

    @pytest.mark.slow("trains or builds for seconds")
    @pytest.mark.parametrize(("dropout", "steps"), [(0.0, 1), (0.3, 2)])
    @pytest.mark.parametrize("remat", [True, "products"])
    def test_training_is_the_same(self, dropout, steps, remat):
        expected_losses, expected = self.trained(steps, dropout=dropout)
        losses, variables = self.trained(steps, dropout=dropout, remat=remat)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
        # Weights, and the states of the random streams.
        for one, other in zip(variables, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=3e-5)

    @pytest.mark.slow("trains or builds for seconds")
    @pytest.mark.parametrize(
        ("model_dtype", "remat"),
        [(None, True), ("float32", True), ("float32", "products")],
    )
    def test_training_in_half_precision_is_the_same(self, model_dtype, remat):
        """Also where the model around the network is in float32."""
        x, *_ = inputs(8)

        def moved(remat, dtype="mixed_bfloat16"):
            """How far one step moves each variable."""
            backbone = randomized(dit(dtype=dtype, remat=remat))
            before = [ops.convert_to_numpy(v) for v in backbone.trainable_variables]
            options = {} if model_dtype is None else {"dtype": model_dtype}
            model = keras_imm.IMM(backbone, **options)
            model.compile(keras.optimizers.SGD(1.0))
            model.train_on_batch(x)
            after = [ops.convert_to_numpy(v) for v in backbone.trainable_variables]
            return [b - a for a, b in zip(before, after, strict=True)]

        # XLA rounds the two apart, but by less than half precision itself rounds. A
        # variable without a gradient would be off by all that it should have moved.
        runs = moved(remat), moved(False), moved(False, "float32")
        for one, other, exact in zip(*runs, strict=True):
            rounding = np.linalg.norm(other - exact)
            assert np.linalg.norm(one - other) < rounding
            assert rounding < 0.75 * np.linalg.norm(exact)

    def test_dropout_is_off_outside_training(self):
        arguments = inputs()
        backbone = randomized(dit(remat=True, dropout=0.3))
        np.testing.assert_allclose(
            output(backbone, arguments, training=False),
            output(randomized(dit()), arguments, training=False),
            atol=1e-6,
        )

    def test_blocks_run_again_in_the_backward_pass(self, backend):
        x, c_t, c_s = inputs()

        def products(remat):
            """How often a block, or its GELU, is in the gradient."""
            backbone = randomized(dit(dropout=0.3, remat=remat))
            calls = []
            for block in backbone.blocks:
                call = block.call
                block.call = lambda *a, call=call, **k: calls.append(a) or call(*a, **k)

            def loss(x):
                return ops.sum(backbone([x, c_t, c_s], training=True))

            if backend != "jax":
                value_and_gradient(loss, x)
                return len(calls)
            import jax  # calls a block once, to trace it

            return str(jax.make_jaxpr(jax.grad(loss))(x)).count("tanh")

        assert products(remat=True) == 2 * products(remat=False) > 0

    def test_what_lies_between_products_runs_again(self, backend):
        x, c_t, c_s = inputs()

        def activations(remat):
            """How often a perceptron's activation is in the gradient."""
            backbone = randomized(dit(dropout=0.3, remat=remat))
            calls = []
            for block in backbone.blocks:
                mlp = block.mlp
                block.mlp = lambda *a, mlp=mlp, **k: calls.append(a) or mlp(*a, **k)

            def loss(x):
                return ops.sum(backbone([x, c_t, c_s], training=True))

            if backend != "jax":
                value_and_gradient(loss, x)
                return len(calls)
            import jax  # calls a perceptron once, to trace it

            return str(jax.make_jaxpr(jax.grad(loss))(x)).count("tanh")

        assert activations(remat="products") == 2 * activations(remat=False) > 0

    def test_weights_are_those_without(self, tmp_path):
        backbone, rematerialized = randomized(dit()), dit(remat=True)
        rematerialized.build()
        backbone.save_weights(tmp_path / "dit.weights.h5")
        rematerialized.load_weights(tmp_path / "dit.weights.h5")
        for training in (False, True):
            np.testing.assert_allclose(
                output(rematerialized, inputs(), training=training),
                output(backbone, inputs(), training=training),
                atol=1e-6,
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (8, 8)}, r"`image_shape` must be three.*=\(8, 8\)"),
        ({"image_shape": (8, 8, 0)}, r"`image_shape` must be three.*=\(8, 8, 0\)"),
        ({"patch_size": 0}, "`patch_size` must be an integer of at least 1.*=0"),
        ({"patch_size": 3}, "`patch_size` must divide the image height.*is 8.*=3"),
        ({"image_shape": (8, 7, 1)}, "`patch_size` must divide.*width, which is 7.*=2"),
        ({"hidden_size": "64"}, "`hidden_size` must be an integer.*='64'"),
        ({"hidden_size": 66, "num_heads": 3}, "`hidden_size` must be a mult.*=66"),
        ({"depth": 0}, "`depth` must be an integer of at least 1.*=0"),
        ({"num_heads": 3}, "`num_heads` must divide `hidden_size`.*is 64.*=3"),
        ({"num_heads": True}, "`num_heads` must be an integer.*=True"),
        ({"mlp_ratio": -4.0}, "`mlp_ratio` must be a finite number above 0.*=-4.0"),
        ({"mlp_ratio": 0.01}, "`mlp_ratio` must be at least 1 / hidden_size.*=0.01"),
        ({"num_classes": -1}, "`num_classes` must be an integer of at least 0.*=-1"),
        ({"qk_norm": "yes"}, "`qk_norm` must be True or False.*='yes'"),
        ({"dropout": 1.0}, r"`dropout` must be a number in \[0, 1\).*=1.0"),
        ({"dropout": -0.1}, r"`dropout` must be a number in \[0, 1\).*=-0.1"),
        ({"remat": 1}, "`remat` must be True or False.*=1"),
        ({"seed": None}, "`seed` must be an integer of at least 0.*=None"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DiT(**arguments)


def test_wrong_inputs():
    x, c_t, c_s = inputs()
    with pytest.raises(ValueError, match=r"`x` must have.*\(8, 8, 4\).*\(4, 8, 4, 8\)"):
        dit()([np.swapaxes(x, 2, 3), c_t, c_s])
    with pytest.raises(ValueError, match=r"`inputs` must be.*length 2"):
        dit()([x, c_t])
    with pytest.raises(ValueError, match=r"`labels` must be given.*null label is 10"):
        dit(num_classes=10)([x, c_t, c_s])


def count_parameters(preset):
    # Variables made in this scope have shapes, but no memory.
    with keras.StatelessScope(initialize_variables=False):
        backbone = DiT.from_preset(preset, (32, 32, 4), num_classes=1000)
        backbone.build()
    return sum(int(np.prod(v.shape)) for v in backbone.trainable_variables)


@pytest.mark.slow("trains or builds for seconds")
def test_parameter_counts_are_the_published_ones():
    counts = {preset: count_parameters(preset) for preset in PUBLISHED_PARAMETERS}
    # Forgets the variables without values, but also what JAX has compiled.
    keras.utils.clear_session()
    assert counts == PUBLISHED_PARAMETERS


def test_jax_keeps_the_residual_stream_on_a_cpu(backend):
    if backend != "jax":
        pytest.skip("only JAX's compiler for CPUs computes it anew in every layer")
    import jax

    if jax.default_backend() != "cpu":
        pytest.skip("other compilers of JAX are left alone")
    backbone = keras_imm.backbones.DiT(depth=3)
    inputs = [np.zeros((2, 8, 8, 1), "float32"), np.zeros(2, "float32")]
    text = jax.jit(lambda x, t: backbone([x, t, t])).lower(*inputs).as_text()
    assert text.count("optimization_barrier") == 2 * 3 + 1  # the norms


def test_a_layout_map_needs_a_mesh_with_the_axis():
    with pytest.raises(ValueError, match="`device_mesh` must be a DeviceMesh"):
        DiT.layout_map("mesh")
    mesh = keras.distribution.DeviceMesh((1,), ("batch",), devices=["cpu:0"])
    with pytest.raises(ValueError, match=r"`axis` must be one of \('batch',\).*model"):
        DiT.layout_map(mesh)
    assert keras_imm.distribution.dit_layout_map is DiT.layout_map  # its old name
