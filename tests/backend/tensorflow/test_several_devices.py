"""Two TensorFlow devices against one."""

import keras
import numpy as np
import pytest
from backend.several_devices.children import seen_by

pytestmark = [
    pytest.mark.slow("child processes"),
    pytest.mark.skipif(
        keras.backend.backend() != "tensorflow", reason="Devices of TensorFlow"
    ),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tensorflow")
    return seen_by("tensorflow", "tensorflow/devices_child.py", folder)


def test_all_devices_are_started(seen):
    assert seen["devices"] == [2, 2]


@pytest.mark.parametrize("run", ["descent", "clipped"])
def test_two_devices_update_as_one_does(seen, run):
    """Also accumulated, rematerialised, clipped and averaged, in float64."""
    one, two = seen[run]["losses"]
    np.testing.assert_allclose(two, one, rtol=1e-12)
    assert seen[run]["difference"] < 1e-12
    assert not seen[run]["copies_differ"]


def test_accumulation_updates_as_one_large_batch_does(seen):
    one, four = seen["accumulated"]["losses"]
    np.testing.assert_allclose(four, one, rtol=1e-6)
    assert seen["accumulated"]["difference"] < 1e-12


def test_a_trained_model_evaluates_saves_and_samples_as_one_devices_does(seen):
    after = seen["afterwards"]
    np.testing.assert_allclose(*after["evaluate"], rtol=1e-12)
    assert after["saved"] == 0.0
    assert max(after["samples"], after["samples_of_one"]) < 1e-6
    assert after["averaged"] > 1e-2
    assert 0.0 < after["second_fit"][0] < np.inf


def test_each_device_draws_its_own_noise_and_masks(seen):
    draws = seen["own_draws"]
    assert abs(draws["alone"][0] - draws["alone"][1]) > 1e-3
    np.testing.assert_allclose(draws["logged"], np.mean(draws["alone"]), rtol=1e-12)


def test_random_states_are_the_same_on_all_devices(seen):
    expected, found = seen["own_draws"]["states"]
    assert found == expected
    assert not seen["own_draws"]["copies_differ"]


def test_a_group_must_not_straddle_devices(seen):
    refused = seen["refused"]
    for method in ("fit", "evaluate"):
        assert "times the number of devices" in refused[method]
        assert refused[method].endswith("2 devices, batch size on one device 6")
    assert refused["weights"] == 0.0
    assert refused["states"][0] == refused["states"][1]
    assert not refused["copies_differ"]


def test_loss_scaling_divides_by_the_devices_once(seen):
    run = seen["half_precision"]
    np.testing.assert_allclose(*run["losses"], rtol=1e-2)
    assert run["difference"] < 1e-4
    assert not run["copies_differ"]


def test_an_overflow_on_one_device_skips_the_step_on_all(seen):
    before, after = seen["half_precision"]["scales"]
    assert after == before / 2
    assert not seen["half_precision"]["moved"]
