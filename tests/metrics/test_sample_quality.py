"""All metrics in one pass equal each on its own, however the samples are split."""

import numpy as np
import pytest

from keras_imm import metrics


@pytest.fixture
def reference(golden):
    data = golden["f2"].astype("float64")
    covariance = np.cov(data, rowvar=False)
    return metrics.ReferenceStatistics(
        data.mean(0), covariance, data.mean(0)[:5], covariance[:5, :5], data
    )


def expected(golden):
    f1, f2 = golden["f1"], golden["f2"].astype("float64")
    distance = metrics.kernel_distance(f1, f2, subset_size=600)
    density = metrics.density_coverage(f1, f2)
    precision, recall, _ = golden["precision_recall_f"]
    return {
        "frechet": float(golden["fid"]),
        "spatial_frechet": metrics.frechet_distance(f1[:, :5], f2[:, :5]),
        "inception_score": golden["isc"][0],
        "inception_score_std": golden["isc"][1],
        "kernel_distance": distance.mean,
        "kernel_distance_std": distance.std,
        "precision": precision,
        "recall": recall,
        "density": density.density,
        "coverage": density.coverage,
    }


def test_two_processes_one_of_which_was_killed(golden, reference, tmp_path):
    first, second = (metrics.SampleQuality(reference) for _ in range(2))

    def update(quality, indices):
        f1, logits = golden["f1"][indices], golden["logits"][indices]
        quality.update(f1, f1[:, :5], logits, indices=indices)

    update(first, np.arange(300, 450))
    np.savez(tmp_path / "state.npz", **first.state())
    first = metrics.SampleQuality(reference)
    first.set_state(dict(np.load(tmp_path / "state.npz")))
    update(first, np.arange(450, 600))
    update(second, np.arange(300))
    first.merge(second)
    assert first.count == 600
    assert first.result() == pytest.approx(expected(golden), rel=1e-5)


def test_moments_alone_give_the_frechet_distance(golden, reference):
    bare = metrics.ReferenceStatistics(reference.mean, reference.covariance)
    quality = metrics.SampleQuality(bare)
    quality.update(golden["f1"], golden["f1"])
    assert quality.result() == pytest.approx({"frechet": float(golden["fid"])})


def test_the_reference_is_checked():
    with pytest.raises(ValueError, match=r"`reference` must be a ReferenceStatistics"):
        metrics.SampleQuality("fid.npz")
