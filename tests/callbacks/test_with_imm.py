"""The sampling callbacks on the real model."""

import numpy as np

from keras_imm.callbacks import SampleImages, SampleMetrics


def test_sampling_during_fit_leaves_training_as_it_was(
    make_model, images, labels, tmp_path
):
    def train(*callbacks):
        model = make_model(compile_options={}, label_dropout=0.5)
        history = model.fit(
            images,
            labels,
            batch_size=16,
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
        return model, history.history

    seen = []

    def spread(samples, labels):
        seen.append(samples)
        return samples.std()

    plain, losses = train()
    watched, history = train(
        SampleMetrics({"spread": spread}, labels=[0, 1, 2], num_steps=(1, 2), freq=2),
        SampleImages(tmp_path / "{epoch}.png", labels=[0, 1, 2], num_steps=2),
    )
    assert history["loss"] == losses["loss"]
    for a, b in zip(plain.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        plain.generate(labels=[0, 1, 2]), watched.generate(labels=[0, 1, 2])
    )

    assert len(history["spread_1_step"]) == len(history["spread_2_steps"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1.png", "2.png", "3.png"]
    assert all(samples.shape == (3, 4, 4, 1) for samples in seen)


def test_the_last_epoch_shows_what_generate_gives_afterwards(
    make_model, images, labels
):
    model = make_model(compile_options={})
    seen = {}

    def keep(samples, labels):
        seen[len(seen)] = samples
        return 0.0

    quality = SampleMetrics({"keep": keep}, labels=[2, 0], num_steps=2, seed=5)
    model.fit(images, labels, batch_size=16, epochs=2, verbose=0, callbacks=[quality])
    after = model.generate(labels=[2, 0], num_steps=2, seed=5)
    np.testing.assert_allclose(seen[1], after, atol=1e-6)
    assert np.abs(seen[0] - seen[1]).max() > 1e-4
