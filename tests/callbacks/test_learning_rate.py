"""The rate in the logs, whoever sets it."""

import keras
import numpy as np
import pytest

from keras_imm.callbacks import LearningRate

SCHEDULE = {"initial_learning_rate": 1.0, "decay_steps": 1, "decay_rate": 0.5}


def rates(stub, optimizer, *callbacks, epochs=2):
    stub.compile(optimizer, "mse")
    return stub.run(*callbacks, LearningRate(), epochs=epochs).history["learning_rate"]


def test_a_number(stub):
    assert rates(stub, keras.optimizers.SGD(0.25)) == [0.25, 0.25]


def test_a_schedule_goes_on_after_a_restart(stub, tmp_path):
    """Two steps an epoch; 0.5 to the power of the steps."""
    decay = keras.optimizers.schedules.ExponentialDecay
    optimizer = keras.optimizers.SGD(decay(**SCHEDULE))
    assert rates(stub, optimizer) == pytest.approx([0.5**2, 0.5**4])
    stub.save_weights(tmp_path / "a.weights.h5")
    stub.compile(keras.optimizers.SGD(decay(**SCHEDULE)), "mse")
    stub.optimizer.build(stub.trainable_variables)
    stub.load_weights(tmp_path / "a.weights.h5")
    history = stub.run(LearningRate(), epochs=1).history
    assert history["learning_rate"] == pytest.approx([0.5**6])


def test_a_schedule_within_a_loss_scale_optimizer(stub):
    schedule = keras.optimizers.schedules.ExponentialDecay(**SCHEDULE)
    optimizer = keras.optimizers.LossScaleOptimizer(
        keras.optimizers.SGD(schedule), initial_scale=2.0
    )
    assert rates(stub, optimizer) == pytest.approx([0.5**2, 0.5**4])


def test_what_another_callback_sets(stub):
    halve = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch)
    assert rates(stub, "sgd", halve) == [1.0, 0.5]


def test_callbacks_later_in_the_list_see_it(stub, tmp_path):
    stub.compile(keras.optimizers.SGD(0.25), "mse")
    path = tmp_path / "log.csv"
    stub.run(LearningRate(), keras.callbacks.CSVLogger(path))
    table = np.genfromtxt(path, delimiter=",", names=True)
    assert table["learning_rate"] == 0.25
