"""Lowers the train step and the sampler of a small DiT for other platforms."""

import functools

import jax
import keras
import numpy as np
from small_dit import small_dit

import keras_imm
from keras_imm import backend

DEPTH = 2
BATCH = 16


def model(policy, accumulation_steps=1, **options):
    network = small_dit(depth=DEPTH, dtype=policy, **options)
    made = keras_imm.IMM(network, accumulation_steps=accumulation_steps)
    made.compile(keras.optimizers.AdamW(1e-3, use_ema=True))
    made.optimizer.build(made.trainable_variables)
    return made


def batch():
    return np.zeros((BATCH, 4, 4, 1), "float32"), np.zeros(BATCH, "int32")


def train_step(made, data=None):
    """The compiled step and its arguments."""
    groups = (
        made.trainable_variables,
        made.non_trainable_variables,
        made.optimizer.variables,
        made.metrics_variables,
    )
    state = tuple([v.value for v in group] for group in groups)
    return jax.jit(made.train_step), (state, batch() if data is None else data)


def sampler(made):
    """The compiled loop of `generate`, with guidance, and its arguments."""
    calls = []

    def recording(function, jit_compile=False):
        compiled = jax.jit(function)

        def call(*arguments):
            calls.append((compiled, arguments))
            return compiled(*arguments)

        return call

    compile_function, backend.compile_function = backend.compile_function, recording
    try:
        made.generate([0, 1, 2], num_steps=2, guidance_scale=1.5, seed=0)
    finally:
        backend.compile_function = compile_function
    return calls[-1]


def lowered(function, arguments, platform):
    """The StableHLO of a compiled function for one platform."""
    return jax.export.export(function, platforms=(platform,))(*arguments).mlir_module()


@functools.cache
def program(kind, policy, platform):
    """Text of a "step", an "accumulated" or "rematerialized" one, or the "sampler"."""
    return lowered(*_function(kind, policy), platform)


@functools.cache
def _function(kind, policy):
    options = {
        "accumulated": {"accumulation_steps": 2},
        "rematerialized": {"remat": True},
    }
    made = model(policy, **options.get(kind, {}))
    return sampler(made) if kind == "sampler" else train_step(made)
