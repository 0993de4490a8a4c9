"""A model that augments its data and tells its backbone what was done."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_imm
from keras_imm.augmentation import EDMAugmentation

pytestmark = pytest.mark.any_backend("fields of a batch")

SHAPE = (4, 4, 3)


def unet(**options):
    defaults = {
        "image_shape": SHAPE,
        "model_channels": 4,
        "channel_mult": (1,),
        "num_blocks": 1,
        "attention_resolutions": (),
        "augmentation_dim": 9,
    }
    return keras_imm.backbones.UNet(**defaults | options)


def randomized(model):
    rng = np.random.default_rng(3)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    return model


@pytest.fixture(scope="module")
def model():
    backbone = unet(num_classes=3)
    augmentation = EDMAugmentation(probability=0.9, seed=0)
    return randomized(keras_imm.IMM(backbone, augmentation=augmentation))


def drawn(model, data, training=True):
    step = ops.convert_to_tensor(0) if training else None
    return model.batch_loss().draw(data, step, training=training)


@pytest.fixture
def images():
    rng = np.random.default_rng(1)
    return 0.5 * rng.standard_normal((8, *SHAPE)).astype("float32")


LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1], "int32")


def test_the_data_are_what_the_augmentation_makes_of_them(model, images):
    particles, told = drawn(model, (images, LABELS))
    assert tuple(told.shape) == (8, 9)
    assert np.any(ops.convert_to_numpy(told) != 0)
    # x_t and x_r are two mixtures of one x and one noise: solve for x.
    x_t, x_r, t, r = (
        ops.convert_to_numpy(v).astype("float64")
        for v in (particles.x_t, particles.x_r, particles.t, particles.r)
    )
    t, r = t[:, None, None, None], r[:, None, None, None]
    keep = (t - r)[:, 0, 0, 0] > 1e-3
    assert keep.any()
    x = (t * x_r - r * x_t) / (t - r)
    expected = ops.convert_to_numpy(model.augmentation.apply(images, told))
    np.testing.assert_allclose(x[keep], expected[keep], atol=2e-2)


def test_both_passes_are_told(model, images, monkeypatch):
    seen = []
    call = model.backbone.call

    def listen(inputs, training=None):
        seen.append(ops.convert_to_numpy(inputs[4]))
        return call(inputs, training=training)

    batch, step = drawn(model, (images, LABELS)), ops.convert_to_tensor(0)
    with monkeypatch.context() as patch:
        patch.setattr(model.backbone, "call", listen)
        y_target = model.batch_loss().target(batch, step)
        model.batch_loss().loss(batch, y_target, step)
    expected = ops.convert_to_numpy(batch.augmentation_labels)
    assert len(seen) == 2
    for told in seen:
        np.testing.assert_array_equal(told, expected)


def test_evaluation_and_samples_are_not_augmented(model, images):
    assert drawn(model, (images, LABELS), False).augmentation_labels is None
    noise = np.random.default_rng(0).standard_normal((3, *SHAPE)).astype("float32")
    x, t, s = 0.5 * noise, 0.994, 0.0
    labels = np.array([0, 1, 2])
    samples = model.generate(labels, num_steps=1, noise=noise)
    zeros = np.zeros((3, 9), "float32")
    for told, is_same in ((zeros, True), (zeros + 1, False)):
        out = model(x, t, s, labels, augmentation_labels=told)
        out = ops.convert_to_numpy(ops.stop_gradient(out))
        assert np.allclose(out, samples, atol=1e-5) == is_same


def test_guidance_tells_both_branches(model, images):
    x, told = images[:2], np.ones((2, 9), "float32")

    def flow_map(labels, **options):
        out = model(x, 0.9, 0.1, labels, augmentation_labels=told, **options)
        return ops.convert_to_numpy(ops.stop_gradient(out))

    given, null = flow_map(LABELS[:2]), flow_map(None)
    guided = flow_map(LABELS[:2], guidance_scale=1.5)
    np.testing.assert_allclose(guided, 1.5 * given - 0.5 * null, atol=1e-5)


@pytest.mark.slow("trains or builds for seconds")
@pytest.mark.parametrize("num_classes", [0, 3])
def test_fit_save_and_load(num_classes, images, tmp_path):
    model = keras_imm.IMM(
        unet(num_classes=num_classes),
        augmentation=EDMAugmentation(probability=0.5, seed=0),
        accumulation_steps=1 if num_classes else 2,
    )
    model.compile(keras.optimizers.Adam(1e-3, epsilon=1e-8, use_ema=True))
    data = (images, LABELS) if num_classes else (images,)
    before = ops.convert_to_numpy(model.backbone.augmentation_dense.kernel)
    history = model.fit(*data, batch_size=8, epochs=2, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))
    after = ops.convert_to_numpy(model.backbone.augmentation_dense.kernel)
    assert np.any(before != after)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    # The stream of the augmentation goes on where it was.
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded.augmentation.draw(4)),
        ops.convert_to_numpy(model.augmentation.draw(4)),
    )
    assert loaded.augmentation.probability == 0.5
    if num_classes == 0:
        assert loaded.generate(num_samples=2, num_steps=1).shape == (2, *SHAPE)


def test_a_backbone_that_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match=r"`augmentation` needs a backbone with"):
        keras_imm.IMM(unet(augmentation_dim=0), augmentation=EDMAugmentation())
    with pytest.raises(ValueError, match=r"`augmentation` must be a Layer"):
        keras_imm.IMM(unet(), augmentation="edm")


def test_each_micro_batch_has_its_own_labels(images):
    model = keras_imm.IMM(
        unet(), augmentation=EDMAugmentation(0.9, seed=0), accumulation_steps=2
    )
    batch = drawn(model, (images,))
    told = ops.convert_to_numpy(batch.augmentation_labels)
    for index, expected in enumerate((told[:4], told[4:])):
        part = model.batch_loss().micro_batch(batch, index)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(part.augmentation_labels), expected
        )
