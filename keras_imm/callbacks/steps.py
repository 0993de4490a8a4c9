"""Which training step it is, on every backend."""

import keras
from keras import ops


def optimizer_step(model: keras.Model) -> int:
    """Steps that the optimizer has made, once they are done.

    Within an epoch JAX holds the state of training apart from the model; this writes it
    back, which costs little where it is not done at every step.

    Args:
        model: A compiled model.

    Returns:
        A non-negative integer.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
    return int(ops.convert_to_numpy(model.optimizer.iterations))


class StepCounter:
    """Says when a multiple of `every` training steps has been made.

    It is asked when a batch begins and when an epoch ends: a callback that waits for
    the end of a batch makes Keras wait, under JAX, for the end of every batch. Steps
    are those of the optimizer, so that a run that continues counts on.

    Args:
        every: A positive integer, or None for never.
    """

    def __init__(self, every: int | None = None):
        self.every = every

    def begin_epoch(self, model: keras.Model) -> None:
        self._first = self._seen = optimizer_step(model)

    def is_due_before(self, batch: int) -> bool:
        """Whether a multiple has been made when batch `batch` of the epoch begins."""
        return self._is_due(self._first + batch)

    def is_due_after_epoch(self, step: int) -> bool:
        """Whether a multiple has been made when the epoch ends at `step`."""
        return self._is_due(step)

    def batches_of_epoch(self, step: int) -> int:
        """How many batches the epoch has had at `step`; it may have been cut short."""
        return step - self._first

    def _is_due(self, step: int) -> bool:
        before, self._seen = self._seen, step
        return self.every is not None and step // self.every > before // self.every
