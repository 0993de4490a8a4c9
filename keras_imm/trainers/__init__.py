"""One train step per backend: the gradient of a given loss, and nothing else.

A trainer is a mixin for a `keras.Model` with these methods and attributes:

- `draw_particles(data, training)`: what one step is about, from the random stream;
- `compute_target(particles, training)`: the part that needs no gradient;
- `compute_objective(particles, y_target, training)`: the scalar to differentiate;
- `micro_batch(particles, index)`: one of `accumulation_steps` equal parts;
- `evaluate_objective(data)`: the loss of one batch of an evaluation;
- `update_logs(loss)`: adds a batch's loss to the running mean, returns the logs;
- `accumulation_steps` and `group_size`: positive integers.

and gives it `devices_per_batch()`: the devices that share the batch of a step.

Each trainer computes the target without keeping activations, accumulates gradients
over the micro-batches and applies the optimizer once.
"""

import importlib

import keras


def get() -> type:
    """The trainer mixin of the current Keras backend.

    Raises:
        ImportError: If there is no trainer for the backend.
    """
    backend = keras.backend.backend()
    if backend not in ("jax", "tensorflow", "torch"):
        raise ImportError(
            'keras_imm trains under the Keras backends "jax", "tensorflow" and '
            f'"torch". Received: backend={backend!r}'
        )
    return importlib.import_module(f"{__name__}.{backend}").Trainer
