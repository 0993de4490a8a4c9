"""What every backbone must do."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
from backends import dtype_of
from keras import ops

import keras_imm


class BackboneContract:
    """`make(**kwargs)` returns a new backbone of seeded initial weights.

    `kwargs` are those of `keras.layers.Layer`.

    Attributes:
        image_shape: Shape of a sample.
        num_classes: Its number of labels; 0 for none.
        bfloat16_tolerance: Of its output under mixed_bfloat16, of the largest value.
    """

    make: Callable
    image_shape = (8, 8, 1)
    num_classes = 3
    bfloat16_tolerance = 0.05

    @pytest.fixture(scope="class")
    def backbone(self, request):
        """For all tests of a class: none changes it."""
        return request.cls().randomized(request.cls.make())

    def randomized(self, backbone):
        """With weights under which no output is 0."""
        backbone(self.tensors())
        rng = np.random.default_rng(0)
        for v in backbone.trainable_variables:
            v.assign(0.2 * rng.standard_normal(v.shape).astype("float32"))
        return backbone

    def inputs(self, count=4, seed=0):
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((count, *self.image_shape)).astype("float32")
        c_s, c_t = np.sort(rng.uniform(0.1, 1, (2, count)).astype("float32"), axis=0)
        labels = [np.arange(count, dtype="int32") % self.num_classes]
        return [x, c_t, c_s, *(labels if self.num_classes else [])]

    def tensors(self, arrays=None):
        arrays = self.inputs() if arrays is None else arrays
        return [ops.convert_to_tensor(array) for array in arrays]

    def output(self, backbone, arrays=None):
        return ops.convert_to_numpy(backbone(self.tensors(arrays)))

    def test_the_output_is_float32_of_the_shape_of_x(self, backbone):
        g = backbone(self.tensors())
        assert dtype_of(g) == "float32"
        assert tuple(g.shape) == (4, *self.image_shape)
        assert np.all(np.isfinite(ops.convert_to_numpy(g)))

    def test_it_says_how_many_labels_it_has(self, backbone):
        assert getattr(backbone, "num_classes", 0) == self.num_classes

    def test_calls_repeat_themselves(self, backbone):
        np.testing.assert_array_equal(self.output(backbone), self.output(backbone))

    def test_every_input_counts(self, backbone):
        expected = self.output(backbone)
        for i, array in enumerate(self.inputs()):
            arrays = self.inputs()
            arrays[i] = (array + 1) % 4 if array.dtype == "int32" else array * 1.5
            gap = np.abs(self.output(backbone, arrays) - expected)
            assert np.all(gap.reshape(4, -1).max(1) > 1e-4), i

    def test_a_sample_knows_nothing_of_the_others(self, backbone):
        arrays = self.inputs()
        whole = self.output(backbone, arrays)
        parts = [self.output(backbone, [a[i : i + 2] for a in arrays]) for i in (0, 2)]
        atol = 1e-5 * np.abs(whole).max()
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=atol)

    def test_the_null_label_is_the_number_of_classes(self, backbone):
        if not self.num_classes:
            pytest.skip("has no labels")
        arrays = self.inputs()
        given = self.output(backbone, arrays)
        arrays[3] = np.full(4, self.num_classes, "int32")
        null = self.output(backbone, arrays)
        assert np.all(np.isfinite(null)) and np.abs(null - given).max() > 1e-4

    def test_half_precision_is_near_and_returns_float32(self, backbone):
        policy = keras.DTypePolicy("mixed_bfloat16")
        half = self.randomized(type(self).make(dtype=policy))
        found, expected = half(self.tensors()), self.output(backbone)
        assert {keras.backend.standardize_dtype(v.dtype) for v in half.weights} == {
            "float32"
        }
        found = ops.convert_to_numpy(ops.cast(found, "float32"))
        atol = self.bfloat16_tolerance * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
        assert np.any(found != expected)

    def test_config_and_weights_make_it_again(self, backbone):
        config = keras.saving.serialize_keras_object(backbone)
        again = keras.saving.deserialize_keras_object(config)
        again(self.tensors())
        again.set_weights(backbone.get_weights())
        np.testing.assert_array_equal(self.output(again), self.output(backbone))

    @pytest.mark.slow("trains for seconds")
    def test_it_trains_is_saved_loaded_and_generates(self, tmp_path):
        backbone = self.randomized(type(self).make())
        model = keras_imm.IMM(backbone, group_size=2)
        model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
        before = [ops.convert_to_numpy(v) for v in backbone.trainable_variables]
        data = self.inputs(8)[:: len(self.inputs()) - 1 if self.num_classes else 4]
        history = model.fit(*data, batch_size=4, verbose=0).history
        assert np.all(np.isfinite(history["loss"]))
        after = [ops.convert_to_numpy(v) for v in backbone.trainable_variables]
        still = [
            v.path
            for v, a, b in zip(backbone.trainable_variables, before, after, strict=True)
            if np.all(a == b)
        ]
        assert not still  # Every weight has a gradient.

        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        request = {"num_steps": 2, "seed": 1, "verbose": 0}
        request |= {"labels": [0, 1]} if self.num_classes else {"num_samples": 2}
        images = model.generate(**request)
        assert images.shape == (2, *self.image_shape) and np.all(np.isfinite(images))
        np.testing.assert_array_equal(loaded.generate(**request), images)

    def test_another_model_starts_from_it(self, backbone):
        model = keras_imm.IMM(backbone, group_size=2)
        model.build((None, *self.image_shape))
        copy = model.clone_backbone()
        assert type(copy) is type(backbone) and copy is not backbone
        np.testing.assert_array_equal(self.output(copy), self.output(backbone))
