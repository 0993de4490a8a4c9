"""`native=True`: what JAX compiles, served by TensorFlow."""

import keras
import numpy as np
import pytest
from served_models import GUIDANCE, LABELS, SEEDS, WIDE, rows

from keras_imm.serving import export_saved_model

on_jax = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="native=True is for JAX"
)


@on_jax
def test_what_jax_compiles_can_be_served(model, tmp_path):
    import tensorflow as tf

    path = export_saved_model(
        model,
        tmp_path,
        guidance_scale=GUIDANCE,
        native=True,
        value_range=WIDE,
        signatures=["generate_from_noise", "serving_default"],
        warmup=False,
    )
    served = tf.saved_model.load(str(path)).signatures
    for count in (1, 7):
        noise, label = rows(count)
        found = served["generate_from_noise"](
            noise=tf.constant(noise),
            label=tf.constant(label),
            guidance_scale=tf.fill([count], GUIDANCE),
        )["image"]
        expected = model.generate(
            label, noise=noise, guidance_scale=GUIDANCE, verbose=0
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)
    images = served["serving_default"](
        seed=tf.constant(SEEDS), label=tf.constant(LABELS)
    )["image"].numpy()
    assert (images[0] != images[1]).any() and (images[0] == images[2]).all()


@on_jax
def test_guidance_in_an_interval(model, tmp_path):
    import tensorflow as tf

    options = {"guidance_scale": 3.0, "guidance_interval": (0.3, 0.7)}
    path = export_saved_model(
        model,
        tmp_path,
        4,
        native=True,
        signatures=["generate_from_noise"],
        warmup=False,
        **options,
    )
    served = tf.saved_model.load(str(path)).signatures
    noise, label = rows(5)
    found = served["generate_from_noise"](
        noise=tf.constant(noise),
        label=tf.constant(label),
        guidance_scale=tf.fill([5], 3.0),
    )["image"]
    expected = model.generate(label, noise=noise, num_steps=4, verbose=0, **options)
    np.testing.assert_allclose(found, expected, atol=1e-4)


@on_jax
def test_other_samplers_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match='takes sampler="pushforward"'):
        export_saved_model(model, tmp_path, native=True, sampler="euler", warmup=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="JAX takes it")
def test_other_backends_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="is for the JAX backend"):
        export_saved_model(model, tmp_path / "served", native=True)
    assert not (tmp_path / "served").exists()
