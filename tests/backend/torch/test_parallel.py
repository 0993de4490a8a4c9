"""Two PyTorch processes against one."""

import keras
import numpy as np
import pytest
from backend.several_devices.children import seen_by

pytestmark = [
    pytest.mark.slow("child processes"),
    pytest.mark.skipif(
        keras.backend.backend() != "torch", reason="Processes of PyTorch"
    ),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    folder = tmp_path_factory.mktemp("torch")
    return seen_by("torch", "torch/process_child.py", folder, torchrun)


def test_processes_know_each_other(seen):
    assert seen["processes"] == [[0, 2, 2, True], [1, 2, 2, False]]


@pytest.mark.parametrize("run, tolerance", [("descent", 1e-5), ("clipped", 1e-12)])
def test_two_processes_update_as_one_does(seen, run, tolerance):
    """Accumulated; with unused weights and remat, or clipped, averaged, in float64.

    The second process starts from zeros: the first one's state becomes everyone's.
    """
    one, two = seen[run]["losses"]
    np.testing.assert_allclose(two, one, rtol=1e-5)
    assert seen[run]["difference"] < tolerance
    assert not seen[run]["processes_differ"]


def test_accumulation_updates_as_one_large_batch_does(seen):
    one, four = seen["accumulated"]["losses"]
    np.testing.assert_allclose(four, one, rtol=1e-6)
    assert seen["accumulated"]["difference"] < 1e-12


def test_a_trained_model_evaluates_saves_and_samples_as_one_processes_does(seen):
    after = seen["afterwards"]
    np.testing.assert_allclose(*after["evaluate"], rtol=1e-6)
    assert after["saved"] == 0.0
    assert max(after["samples"], after["samples_of_one"]) < 1e-6
    assert after["averaged"] > 1e-2
    assert 0.0 < after["second_fit"][0] < np.inf


def test_each_process_draws_its_own_noise_and_masks(seen):
    draws = seen["own_draws"]
    assert abs(draws["alone"][0] - draws["alone"][1]) > 1e-3
    np.testing.assert_allclose(draws["logged"], np.mean(draws["alone"]), rtol=1e-6)


def test_random_states_are_the_same_in_all_processes(seen):
    expected, *found = seen["own_draws"]["states"]
    assert found == [expected] * 2


def test_processes_run_graphs_and_each_run_is_the_same(seen):
    """Bit for bit, with dropout: in both processes, and again."""
    assert seen["traced"] == {"calls": 0, "differ": False}


FLAGS = ["torch.float32", 7]


def test_gradients_are_sent_in_few_buffers(seen):
    """One for each dtype; as zeros where one process has none."""
    few = seen["few_buffers"]
    step = [FLAGS, ["torch.float32", 6 + 6 + 3 + 4], ["torch.float64", 4 + 4]]
    assert few["sent"] == 2 * step
    assert few["means"] == few["small"] == expected_means()
    assert few["sent_small"] == [
        FLAGS,  # of up to 64 bytes
        ["torch.float32", 6 + 6 + 3],
        ["torch.float64", 4 + 4],
        ["torch.float32", 4],
    ]


def expected_means():
    """Of i and i + 1; of weight 1 the second process has none, of 2 both."""
    means = [0.5, 0.5, None, 3.5, 4.5, 5.5, 6.5]
    sizes = [6, 4, 3, 6, 4, 3]
    expected = [m and [m] * n for m, n in zip(means, sizes, strict=False)]
    return [*expected, [[6.5, 6.5], [6.5, 6.5]]]


def test_gradients_that_come_late_in_one_process_count(seen):
    """And go: of each weight one process alone has one, or none."""
    few = seen["few_buffers"]
    assert few["late"] == [None, None, 3 * [6.0], 6 * [6.5], None, 3 * [7.5], None]
    assert few["again"] == expected_means()


def test_processes_that_trained_alone_go_on_as_the_first_does(seen):
    """Adam's correction of its moments counts the first process's steps."""
    joined = seen["joined_late"]
    assert joined["apart"] == [4, 8]
    assert joined["together"] == [5, 5]
    assert not joined["processes_differ"]


def test_layers_frozen_between_two_fits(seen):
    frozen = seen["frozen"]
    assert frozen["rest_moved"]
    assert not frozen["frozen_moved"]
    assert not frozen["processes_differ"]


def test_loss_scaling(seen):
    run = seen["half_precision"]
    np.testing.assert_allclose(*run["losses"], rtol=1e-2)
    assert run["difference"] < 1e-4
    assert not run["processes_differ"]


def test_processes_must_have_equal_shares_of_whole_groups(seen):
    refused = seen["refused"]
    assert "as much data" in refused["lengths"]
    assert refused["lengths"].endswith("[1, 2]")
    assert refused["group"].endswith("batch size 6")
    assert refused["states"][0] == refused["states"][1]
    assert refused["devices"].endswith("Received: devices=['cpu:0']")
