"""Four JAX devices, and eight that split the weights, against one."""

import keras
import numpy as np
import pytest
from backend.several_devices.children import seen_by
from xla_flags import xla_flags

pytestmark = [
    pytest.mark.slow("child processes"),
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="Devices of JAX"),
]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return seen_by(
        "jax",
        "jax/devices_child.py",
        tmp_path_factory.mktemp("jax"),
        # With loops fused, or one device would round otherwise than eight.
        XLA_FLAGS=xla_flags(devices=8, fused=True),
        JAX_ENABLE_X64="1",
    )


def test_all_devices_are_started_or_those_that_are_named(seen):
    assert seen["devices"] == [8, 8]
    assert seen["current"]
    assert seen["four"] == 4
    assert seen["processes"] == [0, 1]


@pytest.mark.parametrize("run, tolerance", [("descent", 1e-4), ("clipped", 1e-12)])
def test_four_devices_update_as_one_does(seen, run, tolerance):
    """Accumulated; with unused weights and remat, or clipped, averaged, in float64."""
    one, four = seen[run]["losses"]
    np.testing.assert_allclose(four, one, rtol=1e-5)
    assert seen[run]["difference"] < tolerance
    assert seen[run]["devices"] == [4]


def test_accumulation_updates_as_one_large_batch_does(seen):
    one, four = seen["accumulated"]["losses"]
    np.testing.assert_allclose(four, one, rtol=1e-6)
    assert seen["accumulated"]["difference"] < 1e-12


def test_a_trained_model_evaluates_saves_and_samples_as_one_devices_does(seen):
    after = seen["afterwards"]
    np.testing.assert_allclose(*after["evaluate"], rtol=1e-6)
    assert after["saved"] == 0.0
    assert max(after["samples"], after["samples_of_one"]) < 1e-6
    assert after["averaged"] > 1e-2
    assert 0.0 < after["second_fit"][0] < np.inf


def test_noise_masks_and_random_states_are_those_of_one_device(seen):
    draws = seen["own_draws"]
    np.testing.assert_allclose(*draws["losses"], rtol=1e-6)
    assert draws["difference"] < 1e-12
    assert draws["states"][0] == draws["states"][1]


def test_a_step_of_each_objective_is_that_of_one_device(seen):
    assert len(seen["every_objective"]) == 7
    for name, (losses, history, difference) in seen["every_objective"].items():
        np.testing.assert_allclose(losses, history, rtol=1e-6, err_msg=name)
        assert difference < 1e-9, name


@pytest.mark.parametrize("kind, extra", [("train", 3), ("test", 2)])
def test_particles_stay_on_their_device(seen, kind, extra):
    """All that the devices exchange are the sums of gradients and losses.

    Two more are of the share of interaction, a mean over the groups that jump.
    """
    weights = seen["groups_stay"]["weights"] if kind == "train" else 1
    exchanged = seen["groups_stay"][kind]
    assert {name for name, _ in exchanged} == {"all-reduce"}
    assert sum(count for _, count in exchanged) == weights + extra
    assert weights < seen["groups_stay"]["device"]


def test_a_group_must_not_straddle_devices(seen):
    refused = seen["refused"]
    for method in ("fit", "evaluate"):
        assert refused[f"{method}_24"].endswith("4 devices, batch size 24")
        assert "times the number of devices" in refused[f"{method}_18"]
        assert "4 devices, batch size as follows." in refused[f"{method}_18"]
        assert "dimension size is 18" in refused[f"{method}_18"]
    assert refused["weights"] == 0.0
    assert 0.0 < refused["afterwards"][0] < np.inf


def test_split_weights_update_and_sample_as_whole_ones_do(seen):
    split = seen["split_weights"]
    np.testing.assert_allclose(*split["losses"], rtol=1e-4)
    assert split["update"] < 1e-3
    assert split["samples"] < 1e-3
    assert split["averages_follow"]


def test_the_large_weights_of_dit_xl_are_split(seen):
    layouts = seen["split_weights"]["layouts"]
    part = {name: own for name, (_, own) in layouts.items()}
    assert part["block_0/attention/qkv/kernel"] == [1152, 864]
    assert part["block_0/attention/qkv/bias"] == [864]
    assert part["block_0/attention/projection/kernel"] == [288, 1152]
    assert part["block_0/attention/projection/bias"] == [1152]
    assert part["block_0/mlp_hidden/kernel"] == [1152, 1152]
    assert part["block_0/mlp_output/kernel"] == [1152, 1152]
    assert part["block_0/modulation/kernel"] == [1152, 1728]
    assert part["final_layer/modulation/kernel"] == [1152, 576]
    assert part["label_embedding/embeddings"] == [1001, 288]
    assert part["t_embedding/hidden_dense/kernel"] == [256, 288]
    assert part["s_embedding/output_dense/kernel"] == [288, 1152]
    whole, own = (
        sum(int(np.prod(shapes[i])) for shapes in layouts.values()) for i in (0, 1)
    )
    assert own < 0.26 * whole  # a quarter, and the few that stay whole


def test_a_sharded_update_is_that_of_one_device(seen):
    """Weights, moments and averages: an eighth on each, and the few that are odd."""
    sharded = seen["sharded_update"]
    assert sharded["devices"] == 8
    np.testing.assert_allclose(*sharded["losses"], rtol=1e-5)
    assert sharded["update"] < 1e-5
    assert sharded["samples"] < 1e-5
    assert 1 / 8 <= sharded["share"] < 0.14


def test_sharded_weights_are_gathered_once_a_step(seen):
    """Before the loop over the parts of a batch: in it, each part would gather them."""
    sharded = seen["sharded_update"]
    assert sharded["gathered"] >= sharded["weights"] > 30
    assert sharded["gathered_in_loops"] < sharded["weights"] / 4
