"""How a batch is split into the micro-batches of a step."""

import numpy as np
from keras import ops

from keras_imm.objectives import MomentMatching
from keras_imm.objectives.batch_loss import Batch
from keras_imm.objectives.moment_matching import Particles


def batch_loss(make_model, accumulation_steps):
    model = make_model(accumulation_steps=accumulation_steps)
    assert isinstance(model.objective, MomentMatching)
    assert model.objective.rows_together == 4
    return model.batch_loss()


def test_parts_are_every_so_manieth_group(make_model):
    split = batch_loss(make_model, 3)
    rows = np.arange(24)  # 6 groups of 4
    times = rows.astype("float32")
    images = np.broadcast_to(rows[:, None, None, None], (24, 4, 4, 1))
    particles = Particles(images, images, times, times, times, rows, rows)
    seen = []
    for index in range(3):
        part = split.micro_batch(Batch(particles), index)
        expected = np.concatenate([rows[4 * g :][:4] for g in (index, index + 3)])
        p = part.particles
        for field in (p.s, p.t, p.labels, p.target_labels, p.x_r[:, 2, 1, 0]):
            np.testing.assert_array_equal(ops.convert_to_numpy(field), expected)
        assert tuple(p.x_t.shape) == (8, 4, 4, 1)
        assert part.augmentation_labels is None
        seen += expected.tolist()
    assert sorted(seen) == rows.tolist()


def test_augmentation_labels_and_absent_fields_are_split_alike(make_model):
    split = batch_loss(make_model, 2)
    rows = np.arange(16)
    particles = Particles(rows, rows, rows, rows, rows, None, None)
    augmentation_labels = rows[:, None] * np.ones((1, 9))
    part = split.micro_batch(Batch(particles, augmentation_labels), 1)
    assert part.particles.labels is part.particles.target_labels is None
    expected = [*range(4, 8), *range(12, 16)]
    labels = ops.convert_to_numpy(part.augmentation_labels)
    np.testing.assert_array_equal(labels, np.outer(expected, np.ones(9)))


def test_each_device_finds_its_share_of_a_part_in_its_share_of_the_batch(make_model):
    split = batch_loss(make_model, 2)
    devices = 2
    rows = np.arange(32)
    owner = rows // (32 // devices)
    particles = Particles(owner, owner, owner, owner, owner, None, None)
    for index in range(2):
        part = split.micro_batch(Batch(particles), index).particles
        np.testing.assert_array_equal(
            ops.convert_to_numpy(part.s), np.repeat([0, 1], 8)
        )
