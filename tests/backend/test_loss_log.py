"""Running means of a loss and of what an objective returns beside it."""

import numpy as np
import pytest
from keras import ops

from keras_imm.backend.loss_log import LossLog


def means(log):
    return {k: float(ops.convert_to_numpy(v)) for k, v in log.result().items()}


def test_means_are_those_of_the_batches():
    log = LossLog()
    for loss, other in ((1.0, 10.0), (2.0, 20.0), (6.0, 60.0)):
        log.update(ops.array(loss), {"a": ops.array(other), "b": ops.array(-other)})
    assert means(log) == {"loss": 3.0, "a": 30.0, "b": -30.0}
    assert list(log.result()) == ["loss", "a", "b"]


def test_metrics_start_again_when_they_are_reset():
    log = LossLog()
    log.update(ops.array(1.0), {"a": ops.array(1.0)})
    for metric in log.metrics:
        metric.reset_state()
    log.update(ops.array(5.0), {"a": ops.array(7.0)})
    assert means(log) == {"loss": 5.0, "a": 7.0}


def test_a_loss_alone_is_alone():
    log = LossLog()
    log.update(ops.array(4.0), {})
    assert means(log) == {"loss": 4.0}


def test_the_vector_holds_all_scalars_and_zeros():
    log = LossLog()
    others = {"a": ops.array(2.0), "b": ops.array(3.0)}
    vector = ops.convert_to_numpy(log.as_vector(ops.array(1.0), others))
    np.testing.assert_array_equal(vector, [1, 2, 3] + [0] * (log.length - 3))
    alone = ops.convert_to_numpy(log.as_vector(ops.array(1.0), {}))
    np.testing.assert_array_equal(alone, [1] + [0] * (log.length - 1))


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"loss": 1.0}, "none of which is named 'loss'"),
        ({str(i): 1.0 for i in range(16)}, "at most 15 scalars"),
        ({"a": np.ones(2, "float32")}, r"must be scalars.*\(2,\)"),
    ],
)
def test_what_cannot_be_logged_is_refused(others, message):
    with pytest.raises(ValueError, match=message):
        LossLog().update(ops.array(1.0), others)
