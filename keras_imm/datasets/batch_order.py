"""Which record is where in the endless stream of batches."""

import functools

import numpy as np

_PERMUTATION, _RECORD = 0, 1


class BatchOrder:
    """The order of the records: a fresh permutation for each pass over them.

    Batches are numbered 0, 1, 2, …, without end, and always full: at the end of a pass
    the records that do not fill one are left out.

    Args:
        num_records: How many records there are.
        batch_size: How many of them a batch holds.
        seed: Integer in [0, 2^32).
        shuffle: Whether to permute, or to take the records in their own order.
    """

    def __init__(self, num_records: int, batch_size: int, seed: int, shuffle: bool):
        self.num_records = num_records
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.batches_per_pass = num_records // batch_size

    def indices(self, batch: int) -> np.ndarray:
        """The records of a batch, shape (batch_size,)."""
        number, place = divmod(batch, self.batches_per_pass)
        start = place * self.batch_size
        if not self.shuffle:
            return np.arange(start, start + self.batch_size)
        order = _permutation(self.num_records, self.seed, number)
        return order[start : start + self.batch_size]

    def generator(self, batch: int, row: int) -> np.random.Generator:
        """Random numbers for one place in the stream and no other."""
        place = batch * self.batch_size + row
        return np.random.default_rng((self.seed, _RECORD, place))


@functools.lru_cache(maxsize=2)
def _permutation(num_records, seed, number):
    rng = np.random.default_rng((seed, _PERMUTATION, number))
    order = rng.permutation(num_records)
    order.setflags(write=False)
    return order
