"""The speed of training in the logs."""

import threading
import time
import warnings

import keras

from keras_imm import devices, distribution, flops
from keras_imm.callbacks.pauses import paused_seconds
from keras_imm.validation import check_integer, check_positive_number


class Throughput(keras.callbacks.Callback):
    """Puts the speed of training into the logs of every epoch.

    - `steps_per_second` and `images_per_second`, over all devices: from the end of the
      first step of `fit`, which compiles, and in later epochs from the start of the
      epoch, to the end of its last step. Reading data counts; sampling by the callbacks
      of this package, validation and what is done at the end of an epoch does not. An
      epoch that leaves no step to measure has no entry.
    - `model_flops_utilization`, where the peak of the device is known: the arithmetic
      that a step needs (the objective's `network_passes`: for IMM four forward passes,
      those of target, gradient, and the backward pass, which costs two), over what the
      devices could do in that time. What rematerialised blocks compute again is not
      counted.

    Let it stand before the callbacks that write the logs.

    Args:
        batch_size: Images of one training step, over all devices.
        multiply_adds: Multiply-adds of one forward pass for one image. Default: counted
            from the model's backbone by `keras_imm.flops`; where that fails there is
            a warning and no utilisation.
        peak_flops: Peak of one device in floating-point operations per second. Default:
            that of `keras_imm.devices` for what the model computes in; on devices that
            it does not know, such as CPUs, there is no utilisation.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    ```python
    speed = keras_imm.callbacks.Throughput(batch_size=256)
    history = model.fit(images, batch_size=256, epochs=2, callbacks=[speed])
    history.history["images_per_second"]
    ```

    Reference:
        - [Chowdhery et al., 2022](https://arxiv.org/abs/2204.02311), Appendix B, for
          model FLOPs utilisation
    """

    # Keras may call `on_train_batch_end` from a thread: it need not wait for each step.
    async_safe = True

    def __init__(
        self,
        batch_size: int,
        multiply_adds: int | None = None,
        peak_flops: float | None = None,
    ):
        super().__init__()
        check_integer("batch_size", batch_size, at_least=1)
        if multiply_adds is not None:
            check_integer("multiply_adds", multiply_adds, at_least=1)
        if peak_flops is not None:
            check_positive_number("peak_flops", peak_flops)
        self.batch_size = batch_size
        self.multiply_adds = multiply_adds
        self.peak_flops = peak_flops
        self._lock = threading.Lock()
        self._is_warm = False

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._is_warm = False
        # `self.model` would have JAX write its state back, also from a thread.
        self._trained = self.model

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        # Steps of this epoch that were done, and when.
        self._first = (0, self._now()) if self._is_warm else None
        self._last = None

    def on_train_batch_end(
        self, batch: int, logs: dict[str, float] | None = None
    ) -> None:
        # The step is done: its loss is in the logs.
        done = (batch + 1, self._now())
        with self._lock:  # threads may come in another order than the steps
            self._first = min(self._first or done, done)
            self._last = max(self._last or done, done)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._is_warm = True
        if logs is None or self._last is None:
            return
        steps, seconds = (b - a for a, b in zip(self._first, self._last, strict=True))
        if steps == 0 or seconds <= 0:
            return
        steps_per_second = steps / seconds
        logs["steps_per_second"] = steps_per_second
        logs["images_per_second"] = steps_per_second * self.batch_size
        available = self._available_flops()
        if available is not None:
            needed = flops.training_step_flops(
                self.multiply_adds,
                self.batch_size,
                self._network_passes(),
            )
            logs["model_flops_utilization"] = steps_per_second * needed / available

    def _network_passes(self) -> float:
        objective = getattr(self._trained, "objective", None)
        return getattr(objective, "network_passes", 4.0)

    def _now(self) -> float:
        return time.perf_counter() - paused_seconds(self._trained)

    def _available_flops(self) -> float | None:
        """Peak of all devices, where it and the arithmetic of a step are known."""
        if self.peak_flops is None:
            self.peak_flops = devices.peak_flops(self.model.compute_dtype)
        if self.peak_flops is None:
            return None
        if self.multiply_adds is None:
            self.multiply_adds = self._count()
        if not self.multiply_adds:
            return None
        return self.peak_flops * distribution.num_devices()

    def _count(self) -> int:
        try:
            return flops.multiply_adds(self.model.backbone, self.model.data_shape)
        except (AttributeError, ValueError) as error:  # no IMM, or one not countable
            warnings.warn(
                f"No model FLOPs utilisation: {error}. Give `multiply_adds`.",
                stacklevel=2,
            )
            return 0
