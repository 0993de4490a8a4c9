"""Initial values made together are those that each initializer gives alone."""

import logging

import keras
import numpy as np
import pytest
from keras import initializers
from small_dit import small_dit

import keras_imm
from keras_imm import backend

if keras.backend.backend() != "jax":
    pytest.skip("other backends compile no initial values", allow_module_level=True)

import jax

from keras_imm.backend.jax.initial_values import _random_bits


class Doubled(initializers.GlorotUniform):
    def __call__(self, shape, dtype=None):
        return 2.0 * super().__call__(shape, dtype)


INITIALIZERS = {
    "zeros": initializers.Zeros(),
    "ones": initializers.Ones(),
    "constant": initializers.Constant(0.3),
    "glorot_uniform": initializers.GlorotUniform(seed=1),
    "glorot_normal": initializers.GlorotNormal(seed=2),
    "he_uniform": initializers.HeUniform(seed=3),
    "lecun_uniform": initializers.LecunUniform(seed=2**31),
    "fan_out": initializers.VarianceScaling(1e-10, "fan_out", "uniform", seed=4),
    "untruncated": initializers.VarianceScaling(
        0.2, "fan_avg", "untruncated_normal", seed=5
    ),
    "random_normal": initializers.RandomNormal(0.1, 0.02, seed=6),
    "random_uniform": initializers.RandomUniform(-0.3, 0.7, seed=7),
    "truncated_normal": initializers.TruncatedNormal(seed=8),
    "orthogonal": initializers.Orthogonal(seed=9),
    "own_subclass": Doubled(seed=10),
    "function": lambda shape, dtype: keras.ops.full(shape, 0.7, dtype),
}
SMALL, CONVOLUTION, LARGE = (5, 7), (3, 3, 4, 6), (300, 300)
SHAPES = SMALL, CONVOLUTION, LARGE
CASES = [
    *[(name, SMALL, "float32") for name in INITIALIZERS],
    *[
        (name, shape, dtype)
        for name in ("zeros", "ones", "glorot_uniform", "random_normal")
        for shape, dtype in (
            (CONVOLUTION, "float32"),
            (LARGE, "float32"),
            (SMALL, "bfloat16"),
            (SMALL, "float16"),
        )
    ],
]


@pytest.mark.parametrize("seed", [0, 1, 123456789, 2**32 - 1])
@pytest.mark.parametrize("size", [1, 3, 1024, 5000])
def test_bits_are_those_of_jax(seed, size):
    key = np.array([seed, 0], "uint32")
    np.testing.assert_array_equal(
        _random_bits(seed, size), jax.random.bits(key, (size,))
    )


@pytest.mark.slow("compiles every initializer")
def test_values_are_those_of_each_initializer_alone():
    with backend.initial_values_together():
        together = [
            keras.Variable(INITIALIZERS[name], shape, dtype)
            for name, shape, dtype in CASES
        ]
    for (name, shape, dtype), variable in zip(CASES, together, strict=True):
        alone = keras.Variable(INITIALIZERS[name], shape, dtype)
        assert variable.value.dtype == alone.value.dtype == dtype
        np.testing.assert_array_equal(variable.value, alone.value, err_msg=name)


def test_a_random_stream_is_drawn_from_in_the_same_order():
    values = []
    for context in (backend.initial_values_together(), keras.name_scope("alone")):
        normal = initializers.RandomNormal(seed=keras.random.SeedGenerator(1))
        with context:
            made = [keras.Variable(normal, (2, 2), "float32") for _ in range(2)]
        values.append(np.stack([v.value for v in made]))
    np.testing.assert_array_equal(*values)
    assert np.any(values[0][0] != values[0][1])


@pytest.mark.parametrize("name", ["Adam", "Muon", "Lion", "SGD", "Adafactor", "Ftrl"])
def test_optimizers_start_as_without(name):
    states = []
    for context in (backend.initial_values_together(), keras.name_scope("alone")):
        weights = [keras.Variable(np.ones(shape, "float32")) for shape in SHAPES]
        optimizer = getattr(keras.optimizers, name)(0.1, use_ema=True)
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        with context:
            optimizer.build(weights)
        states.append([np.asarray(v.value) for v in optimizer.variables])
    for together, alone in zip(*states, strict=True):
        np.testing.assert_array_equal(together, alone)
        assert together.dtype == alone.dtype


def test_a_network_of_new_shapes_takes_few_compilations(caplog):
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        model = keras_imm.IMM(small_dit(hidden_size=28, num_heads=7, depth=3))
        model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    compilations = caplog.text.count("Finished XLA compilation")
    assert 0 < compilations < 12
    assert len({tuple(v.shape) for v in model.variables}) > 12


def test_other_prng_settings_are_respected():
    initializer = initializers.GlorotUniform(seed=3)
    with jax.threefry_partitionable(False):
        expected = initializer((6, 5))
        with backend.initial_values_together():
            variable = keras.Variable(initializer, (6, 5), "float32")
        np.testing.assert_array_equal(variable.value, expected)
    assert np.any(np.asarray(expected) != np.asarray(initializer((6, 5))))


def test_inside_a_stateless_scope_nothing_is_made():
    with keras.StatelessScope(), backend.initial_values_together():
        variable = keras.Variable(initializers.GlorotUniform(seed=3), (6, 5), "float32")
    expected = initializers.GlorotUniform(seed=3)((6, 5))
    np.testing.assert_array_equal(variable.value, expected)


def test_an_error_leaves_nothing_behind():
    with pytest.raises(KeyboardInterrupt), backend.initial_values_together():
        keras.Variable("zeros", (2,))
        raise KeyboardInterrupt
    np.testing.assert_array_equal(keras.Variable("ones", (2,)).value, np.ones(2))
    with backend.initial_values_together():
        variable = keras.Variable("ones", (3,))
    np.testing.assert_array_equal(variable.value, np.ones(3))


def test_a_network_may_be_made_while_a_function_is_traced():
    initializer = initializers.RandomNormal(seed=3)

    def made():
        with backend.initial_values_together():
            variables = [
                keras.Variable(one, (6, 5), "float32")
                for one in (initializer, initializers.GlorotUniform(seed=3))
            ]
        return variables[0].value + 0.0 * variables[1].value

    np.testing.assert_array_equal(jax.jit(made)(), initializer((6, 5)))
