"""A newcomer's piece inside a model."""

import numpy as np
from keras import ops, optimizers
from small_dit import small_dit

import keras_imm


def check_trains(**options):
    """One step of an IMM with these pieces: a finite loss, and other weights."""
    model = keras_imm.IMM(small_dit(num_classes=0), seed=0, **options)
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    model.compile(optimizer=optimizers.SGD(1e-2))
    images = 0.5 * rng.standard_normal((16, 4, 4, 1)).astype("float32")
    before = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    loss = model.train_on_batch(images)
    after = [ops.convert_to_numpy(v) for v in model.trainable_variables]
    assert np.isfinite(loss)
    assert loss > 0
    assert all(np.all(np.isfinite(value)) for value in after)
    moved = [np.any(a != b) for a, b in zip(before, after, strict=True)]
    assert any(moved)
