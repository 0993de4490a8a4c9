import pathlib

import keras
import numpy as np
import pytest
from keras import ops
from small_dit import small_dit

import keras_imm
from keras_imm.checkpoints import load_official, with_num_classes
from keras_imm.metrics import frechet_distance

pytestmark = pytest.mark.any_backend("a network made of another one")

GOLDEN = pathlib.Path(__file__).parents[1] / "data/golden"
DIT = GOLDEN / "dit_euler_fm_stride.pkl"


def values(backbone):
    return {
        v.path.split(backbone.name + "/")[1]: ops.convert_to_numpy(v)
        for v in backbone.weights
    }


def test_everything_but_the_label_table_is_kept():
    model = load_official(DIT)
    copy = with_num_classes(model, 3)
    old, new = values(model.backbone), values(copy.backbone)
    assert set(old) == set(new)
    for path, value in old.items():
        if path == "label_embedding/embeddings":
            assert new[path].shape == (4, 48)
            np.testing.assert_array_equal(new[path][-1], value[-1])
            for row in new[path][:-1]:
                assert not np.any(np.all(row == value, axis=1))
        else:
            np.testing.assert_array_equal(new[path], value)
    assert (copy.num_classes, copy.backbone.num_classes) == (3, 3)
    for setting in ("second_time", "min_time", "max_time", "time_scale", "sigma_data"):
        assert getattr(copy, setting) == getattr(model, setting)
    assert type(copy.parameterization) is type(model.parameterization)
    # The original is as it was.
    assert model.num_classes == 10


@pytest.mark.parametrize("is_built", [False, True])
@pytest.mark.parametrize(("name", "model_name"), [("dit", "my_dit"), ("imm", "imm")])
def test_names_do_not_matter(name, model_name, is_built):
    backbone = keras_imm.backbones.DiT((4, 4, 1), 2, 16, 1, 2, num_classes=4, name=name)
    if is_built:
        backbone.build()
    model = keras_imm.IMM(backbone, name=model_name)
    rng = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(rng.standard_normal(v.shape))
    for num_classes in (2, 4):
        copy = with_num_classes(model, num_classes).backbone
        for v, w in zip(copy.weights, backbone.weights, strict=True):
            ours, theirs = ops.convert_to_numpy(v), ops.convert_to_numpy(w)
            if v is copy.label_embedding.embeddings:
                assert not np.any(ours[:1] == theirs[:1])
                ours, theirs = ours[-1], theirs[-1]
            np.testing.assert_array_equal(ours, theirs)


def test_unconditional_samples_stay_the_same():
    model = load_official(DIT)
    copy = with_num_classes(model, 3)
    noise = np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype("float32")
    np.testing.assert_allclose(
        copy.generate(labels=[3, 3], noise=noise),
        model.generate(labels=[10, 10], noise=noise),
        atol=1e-6,
    )


def test_the_same_number_of_classes_starts_the_labels_anew():
    model = load_official(DIT)
    old = values(model.backbone)["label_embedding/embeddings"]
    new = values(with_num_classes(model, 10).backbone)["label_embedding/embeddings"]
    assert np.all(np.any(new[:-1] != old[:-1], axis=1))
    np.testing.assert_array_equal(new[-1], old[-1])


def test_labels_taken_away_and_given(tmp_path):
    model = load_official(DIT)
    none = with_num_classes(model, 0)
    assert none.backbone.label_embedding is None
    again = with_num_classes(none, 2)
    kernel = "block_1/attention/qkv/kernel"
    np.testing.assert_array_equal(
        values(again.backbone)[kernel], values(model.backbone)[kernel]
    )
    unet = load_official(GOLDEN / "unet_ddpmpp_simple_edm.pkl")
    labelled = with_num_classes(unet, 4)
    old, new = values(unet.backbone), values(labelled.backbone)
    assert set(new) - set(old) == {"label_dense/kernel", "label_dense/bias"}
    for path, value in old.items():
        np.testing.assert_array_equal(new[path], value)
    kept = values(with_num_classes(labelled, 6).backbone)
    assert kept["label_dense/kernel"].shape == (6, 16)
    np.testing.assert_array_equal(kept["label_dense/bias"], new["label_dense/bias"])


@pytest.mark.slow("trains or builds for seconds")
def test_averages_or_raw_weights():
    model = keras_imm.IMM(small_dit())
    model.compile(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=0.9))
    rng = np.random.default_rng(0)
    images = 0.5 * rng.standard_normal((8, 4, 4, 1)).astype("float32")
    model.fit(images, rng.integers(0, 3, 8), batch_size=8, epochs=2, verbose=0)
    model.backbone.trainable = False
    kernel = model.backbone.final_layer.projection.kernel
    values = model.weights_for_sampling("ema")
    (average,) = (
        ops.convert_to_numpy(value)
        for v, value in zip(model.flow.variables, values, strict=True)
        if v is kernel
    )
    assert np.any(average != ops.convert_to_numpy(kernel))
    for weights, expected in (("ema", average), ("raw", kernel)):
        copy = with_num_classes(model, 5, weights=weights)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(copy.backbone.final_layer.projection.kernel),
            ops.convert_to_numpy(expected),
        )
        assert copy.backbone.trainable
        # Training the copy leaves the model as it is.
        copy.compile(keras.optimizers.SGD(0.1))
        copy.fit(images, rng.integers(0, 5, 8), batch_size=8, verbose=0)
        assert model.generate([0], weights=weights, seed=0).shape == (1, 4, 4, 1)


def test_errors():
    model = load_official(DIT)
    for call, message in (
        (lambda: with_num_classes(model.backbone, 3), "`model` must be a FlowMapModel"),
        (lambda: with_num_classes(model, -1), "`num_classes` must be an integer"),
        (lambda: with_num_classes(model, 3, weights="best"), "`weights` must be one"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    layer = keras.layers.Identity()
    with pytest.raises(ValueError, match=r"an argument `num_classes`.* Identity"):
        with_num_classes(keras_imm.IMM(layer), 3)


def digits():
    """Zeros and ones of scikit-learn's digits, as images of four channels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(n_class=2, return_X_y=True)
    images = (images - images.mean()) / images.std() * 0.5
    images = images.reshape(-1, 8, 8, 1).repeat(4, axis=-1)[:352].astype("float32")
    return images, labels[:352]


@pytest.mark.slow("trains for ten seconds")
def test_a_published_network_learns_digits():
    """Ten classes become two: samples come nearer to the digits than they were."""
    images, labels = digits()
    keras.utils.set_random_seed(0)
    model = with_num_classes(load_official(DIT), 2)
    model.compile(
        keras.optimizers.Adam(2e-3, epsilon=1e-8, use_ema=True, ema_momentum=0.95)
    )

    def distances():
        """Of the samples of each class to its digits, on the mean channel."""
        found = []
        for label in (0, 1):
            samples = model.generate(labels=[label] * 128, num_steps=2, seed=0)
            real = images[labels == label].mean(-1).reshape(-1, 64)
            fake = samples.mean(-1).reshape(-1, 64)
            found.append(frechet_distance(real, fake))
        return np.array(found)

    before = distances()
    model.fit(images, labels, batch_size=44, epochs=60, verbose=0)
    after = distances()
    assert np.all(after < before)
    assert after.sum() < 0.75 * before.sum()
