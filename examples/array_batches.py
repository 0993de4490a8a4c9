"""Batches of arrays for `fit`, shuffled anew at every pass and repeatable."""

import hashlib

import keras
import numpy as np


class Batches(keras.utils.PyDataset):
    """Full batches of a data set shuffled anew at every pass, for one epoch of `fit`.

    A pass and an epoch are independent: `len` is the number of steps per epoch, and the
    passes follow one another across epochs. Batches depend on `seed` alone, and all
    backends get the same.
    """

    def __init__(self, arrays, batch_size, steps_per_epoch, seed):
        super().__init__()
        self.arrays = arrays
        self.batch_size = batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.epoch = 0
        self._pass, self._order = None, None

    def __len__(self):
        return self.steps_per_epoch

    def __getitem__(self, step):
        count = len(self.arrays[0])
        number, position = divmod(
            self.epoch * self.steps_per_epoch + step, count // self.batch_size
        )
        if number != self._pass:
            order = np.random.default_rng([self.seed, number]).permutation(count)
            self._pass, self._order = number, order
        rows = self._order[position * self.batch_size :][: self.batch_size]
        return tuple(array[rows] for array in self.arrays)

    def on_epoch_end(self):
        self.epoch += 1


class ResumableBatches(Batches):
    """Batches whose position `keras_imm.callbacks.TrainingCheckpoint` keeps.

    Of the epochs that Keras says have ended, those count that have begun: it says so
    once before the first.
    """

    _begun = False

    def on_epoch_begin(self):
        self._begun = True

    def on_epoch_end(self):
        self.end_epoch()

    def end_epoch(self):
        self.epoch += self._begun
        self._begun = False

    @property
    def fingerprint(self):
        """What must be the same for a run to go on."""
        digest = hashlib.sha256()
        for array in self.arrays:
            digest.update(np.ascontiguousarray(array))
        return {
            "sha256": digest.hexdigest(),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def get_state(self):
        return {"epoch": self.epoch}

    def set_state(self, state):
        self.epoch = state["epoch"]
