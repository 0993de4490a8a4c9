"""A network whose jumps are known and which remembers what it was given."""

import numpy as np
from keras import ops

from keras_imm import schedules

TIMES = np.array([0.9, 0.6, 0.3, 0.1])


class RecordedNetwork:
    """The flow map x -> 2 x + t - s, on times from 0.1 to 0.9."""

    sigma_data, min_time, max_time = 0.5, 0.1, 0.9

    def __init__(self, schedule="flow_matching"):
        self.schedule = schedules.get(schedule)
        self.steps, self.inputs = [], []

    def flow_map(self, x, t, s):
        self.steps.append((float(t), float(s)))
        self.inputs.append(ops.convert_to_numpy(x).copy())
        return 2.0 * x + (t - s)


def noise(seed=0):
    return np.random.default_rng(seed).standard_normal((5, 3)).astype("float32")
