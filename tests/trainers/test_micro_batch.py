"""How a batch is split into micro-batches."""

import numpy as np
from keras import ops

from keras_imm.objective import Particles


def test_parts_are_every_so_manieth_group(make_model):
    model = make_model(accumulation_steps=3)
    rows = np.arange(24)  # 6 groups of 4
    values = {name: rows.astype("float32") for name in ("s", "r", "t")}
    images = np.broadcast_to(rows[:, None, None, None], (24, 4, 4, 1))
    particles = Particles(images, images, *values.values(), rows, rows)
    seen = []
    for index in range(3):
        part = model.micro_batch(particles, index)
        expected = np.concatenate([rows[4 * g :][:4] for g in (index, index + 3)])
        for field in (part.s, part.t, part.labels, part.x_r[:, 2, 1, 0]):
            np.testing.assert_array_equal(ops.convert_to_numpy(field), expected)
        assert tuple(part.x_t.shape) == (8, 4, 4, 1)
        assert part.augmentation_labels is None
        seen += expected.tolist()
    assert sorted(seen) == rows.tolist()


def test_each_device_finds_its_share_of_a_part_in_its_share_of_the_batch(make_model):
    model = make_model(accumulation_steps=2)
    devices = 2
    rows = np.arange(32)
    owner = rows // (32 // devices)
    particles = Particles(owner, owner, owner, owner, owner, None, None)
    for index in range(2):
        part = ops.convert_to_numpy(model.micro_batch(particles, index).s)
        np.testing.assert_array_equal(part, np.repeat([0, 1], 8))
