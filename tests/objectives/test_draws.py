"""Times, roles and labels that the objectives draw."""

import keras
import numpy as np
import pytest
from closed_forms import SIGMA, network, numpy
from keras import ops

from keras_imm.backbones import UNet
from keras_imm.flow_map import FlowMap, Network
from keras_imm.objectives import (
    ConsistencyTraining,
    ContinuousConsistency,
    DifferentialMomentMatching,
    MeanFlow,
    Shortcut,
    SoFlow,
    TerminalVelocityMatching,
)

ROWS = 4096
NULL = 3


def draw(objective, progress=0.0, training=True, **options):
    """One large batch, as NumPy."""
    rng = np.random.default_rng(0)
    x = (SIGMA * rng.standard_normal((ROWS, 2, 2, 1))).astype("float32")
    labels = rng.integers(NULL, size=ROWS).astype("int32")
    particles = objective.draw(
        network(**options),
        *map(ops.convert_to_tensor, (x, labels)),
        keras.random.SeedGenerator(1),
        ops.convert_to_tensor(progress, "float32"),
        training,
    )
    return type(particles)(*map(numpy, particles)), labels


def logit(t):
    return np.log(t / (1 - t))


def places(period):
    return np.arange(ROWS) % period


def test_mean_flow_has_a_share_of_s_equal_t_by_place():
    found, _ = draw(MeanFlow(flow_matching_share=0.75))
    np.testing.assert_array_equal(found.s == found.t, places(4) >= 1)
    assert np.all(found.s <= found.t)
    # Of rows that jump, s and t are two draws of one logit-normal.
    jumps = places(4) < 1
    both = logit(np.concatenate([found.s[jumps], found.t[jumps]]))
    assert both.mean() == pytest.approx(-0.4, abs=0.08)
    assert both.std() == pytest.approx(1.0, abs=0.06)


def test_mean_flow_may_draw_s_by_itself():
    found, _ = draw(MeanFlow.from_preset("cifar10_v1"))
    jumps = places(4) < 3
    assert np.all(found.s[~jumps] == found.t[~jumps]) and np.all(found.s <= found.t)
    assert logit(found.t).mean() == pytest.approx(-0.6, abs=0.1)
    assert logit(found.t).std() == pytest.approx(1.6, abs=0.1)
    assert np.mean(found.s[jumps] < found.t[jumps]) > 0.85


@pytest.mark.parametrize(("progress", "rho"), [(0.0, 0.1), (0.5, 0.0316), (1.0, 0.01)])
def test_so_flow_s_gap_shrinks_with_progress(progress, rho):
    found, _ = draw(SoFlow(0.5, rho=(0.1, 0.01)), progress)
    jumps = places(2) < 1
    np.testing.assert_array_equal(found.s == found.t, ~jumps)
    s, t, middle = (
        v[jumps].astype("float64") for v in (found.s, found.t, found.middle)
    )
    wide = t - s > 0.1
    ratio = (t - middle)[wide] / (t - s)[wide]
    np.testing.assert_allclose(ratio, rho, rtol=0.02)
    assert np.all(s < middle + 1e-6) and np.all(middle < t)
    np.testing.assert_array_equal(found.middle[~jumps], found.t[~jumps])
    assert logit(found.t[~jumps]).mean() == pytest.approx(-0.2, abs=0.08)
    assert logit(t).mean() == pytest.approx(0.2, abs=0.08)


def test_shortcut_s_steps_are_dyadic_and_labels_of_halves_stay():
    found, labels = draw(Shortcut(0.25, finest_steps=16, label_dropout=0.5))
    halves = places(4) < 1
    sizes, counts = np.unique(found.step[halves], return_counts=True)
    np.testing.assert_array_equal(sizes, [1 / 8, 1 / 4, 1 / 2, 1])
    assert counts.min() > 0.8 * counts.mean()
    multiple = found.t[halves] / found.step[halves]
    np.testing.assert_array_equal(multiple, np.round(multiple))
    assert multiple.min() == 1 and found.t.max() == 1
    for size in sizes:  # as often at each of its times
        times, counts = np.unique(multiple[found.step[halves] == size], return_counts=1)
        np.testing.assert_array_equal(times, np.arange(1, 1 / size + 1))
        assert counts.min() > counts.mean() - 4 * np.sqrt(counts.mean())
    assert np.all(found.step[~halves] == 0)
    finest = 16 * found.t[~halves]
    np.testing.assert_array_equal(finest, np.round(finest))
    np.testing.assert_array_equal(found.labels[halves], labels[halves])
    assert np.mean(found.labels[~halves] == NULL) == pytest.approx(0.5, abs=0.03)


def test_consistency_s_noise_is_log_normal_and_its_gap_shrinks():
    options = {"parameterization": "simple_edm", "max_time": 0.994}
    gaps = []
    for progress in (0.0, 0.5, 1.0):
        found, _ = draw(ConsistencyTraining(), progress, **options)
        log_sigma = np.log(SIGMA * found.t / (1 - found.t))
        inside = found.t < 0.994
        assert log_sigma[inside].mean() == pytest.approx(-1.1, abs=0.12)
        assert np.all(found.r < found.t)
        gaps.append(np.mean(found.t - found.r))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


@pytest.mark.parametrize("preset", ["cifar10", "imagenet64"])
def test_continuous_consistency_s_published_ramp(preset):
    """10,000 of 400,000 steps (Lu and Song, 2024)."""
    ramp = ContinuousConsistency.from_preset(preset).warmup
    assert ramp == pytest.approx(10_000 / 400_000)


@pytest.mark.parametrize(
    ("progress", "warmup", "ramp"),
    [(0.0, 0.4, 0.0), (0.1, 0.4, 0.25), (0.5, 0.4, 1.0), (0.0, 0.0, 1.0)],
)
def test_continuous_consistency_s_ramp(progress, warmup, ramp):
    options = {"schedule": "cosine", "parameterization": "simple_edm"}
    found, _ = draw(ContinuousConsistency(warmup=warmup), progress, **options)
    np.testing.assert_allclose(found.ramp, ramp, atol=1e-6)
    log_sigma = np.log(SIGMA * np.tan(np.pi * found.t.astype("float64") / 2))
    assert log_sigma.mean() == pytest.approx(-1.0, abs=0.1)
    assert log_sigma.std() == pytest.approx(1.4, abs=0.1)


def test_groups_of_the_limit_share_their_times():
    found, _ = draw(DifferentialMomentMatching(group_size=4), max_time=0.994)
    for times in (found.s, found.t):
        groups = times.reshape(-1, 4)
        assert np.all(groups == groups[:, :1]) and len(np.unique(groups[:, 0])) > 1000
    assert np.all(found.s <= found.t) and found.t.max() <= 0.994


def test_terminal_velocity_s_times_are_a_gap_and_a_truncated_start():
    found, _ = draw(TerminalVelocityMatching())
    gap = (found.t - found.s).astype("float64")
    assert np.all(found.s >= 0) and np.all(found.t <= 1) and np.all(gap >= 0)
    assert logit(np.clip(gap, 1e-4, 1 - 1e-4)).mean() == pytest.approx(-0.8, abs=0.08)
    # Among small gaps s is nearly the whole logit-normal; among large ones it is cut.
    small = gap < 0.1
    assert logit(found.s[small]).mean() == pytest.approx(-0.5, abs=0.25)
    assert found.s[gap > 0.7].max() < 0.3
    assert logit(found.t_v).mean() == pytest.approx(-0.4, abs=0.08)


def test_no_label_is_dropped_in_an_evaluation():
    for objective in (MeanFlow(), SoFlow(), Shortcut(), TerminalVelocityMatching()):
        found, labels = draw(objective, training=False)
        np.testing.assert_array_equal(found.labels, labels)


def test_a_part_of_a_network_has_its_rows_labels():
    """Those that are bound in, of the data and of their augmentation."""
    backbone = UNet(
        **{"image_shape": (4, 4, 1), "model_channels": 4, "channel_mult": (1,)},
        **{"num_blocks": 1, "attention_resolutions": (), "num_classes": 3},
        augmentation_dim=2,
    )
    flow_map = FlowMap(backbone)
    rng = np.random.default_rng(0)
    for v in backbone.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    x = rng.standard_normal((4, 4, 4, 1)).astype("float32")
    t = np.array([0.9, 0.7, 0.5, 0.3], "float32")
    bound = {
        "labels": ops.convert_to_tensor([0, 1, 2, 0]),
        "augmentation_labels": ops.convert_to_tensor(np.eye(4, 2, dtype="float32")),
    }
    whole = Network(flow_map, **bound)
    part = whole.part(lambda rows: rows[1:3])
    expected = numpy(whole.output(*map(ops.convert_to_tensor, (x, t, 0 * t))))
    x, t = x[1:3], t[1:3]
    found = numpy(part.output(*map(ops.convert_to_tensor, (x, t, 0 * t))))
    np.testing.assert_allclose(found, expected[1:3], rtol=1e-4, atol=1e-5)
