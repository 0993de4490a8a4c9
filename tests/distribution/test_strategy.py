"""What `initialize` is told, and a run that has one device."""

import keras
import pytest

from keras_imm import distribution


def test_one_device_changes_nothing():
    strategy = distribution.initialize()
    assert strategy.native is None
    assert keras.distribution.distribution() is None
    assert strategy.num_devices == distribution.num_devices() == 1
    assert (distribution.process_index(), distribution.process_count()) == (0, 1)
    assert distribution.is_chief()
    distribution.barrier()
    with strategy.scope():
        assert keras.layers.Dense(2)(keras.ops.ones((1, 3))).shape == (1, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_processes": 2}, r"come together.*num_processes=2"),
        ({"coordinator_address": "host:1"}, r"come together.*'host:1'"),
        (
            {"coordinator_address": "host", "num_processes": 2, "process_id": 0},
            r"must be 'host:port'.*'host'",
        ),
        (
            {"coordinator_address": "host:1", "num_processes": 0, "process_id": 0},
            r"`num_processes` must be .* at least 1.*=0",
        ),
        (
            {"coordinator_address": "host:1", "num_processes": 2, "process_id": 2},
            r"`process_id` must be below.*process_id=2",
        ),
        (
            {"coordinator_address": "host:1", "num_processes": 2, "process_id": -1},
            r"`process_id` must be .* at least 0.*=-1",
        ),
        ({"devices": "gpu:0"}, r"`devices` must be a non-empty sequence.*'gpu:0'"),
        ({"devices": []}, r"`devices` must be a non-empty sequence.*\[\]"),
    ],
)
def test_arguments_that_do_not_fit_each_other(arguments, message):
    with pytest.raises(ValueError, match=message):
        distribution.initialize(**arguments)


def test_tensorflow_has_one_process(backend):
    if backend != "tensorflow":
        pytest.skip("The other backends join processes")
    with pytest.raises(ValueError, match=r"one process has all devices.*'host:1'"):
        distribution.initialize("host:1", 2, 0)


def test_weights_are_split_under_jax_alone(backend):
    with pytest.raises(ValueError, match=r"`shard_weights` must be True or False.*=1"):
        distribution.initialize(shard_weights=1)
    if backend != "jax":
        with pytest.raises(ValueError, match=r"JAX splits weights.*shard_weights=True"):
            distribution.initialize(shard_weights=True)
    else:  # which has one device here, in which nothing is split
        assert distribution.initialize(shard_weights=True).native is None
