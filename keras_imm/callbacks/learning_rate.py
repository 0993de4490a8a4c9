"""The learning rate in the logs."""

import keras
from keras import ops


class LearningRate(keras.callbacks.Callback):
    """Puts the optimizer's current learning rate into the logs as `learning_rate`.

    It is the rate of the next step, whether a number, a schedule or what another
    callback has set, and also within a `LossScaleOptimizer`. Let it stand before the
    callbacks that write the logs.

    Example:

    ```python
    rate = keras_imm.callbacks.LearningRate()
    log = keras.callbacks.CSVLogger("runs/a.csv")
    model.fit(dataset, epochs=100, callbacks=[rate, log])
    ```
    """

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if logs is not None:
            rate = self.model.optimizer.learning_rate
            logs["learning_rate"] = float(ops.convert_to_numpy(rate))
