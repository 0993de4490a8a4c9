"""Half precision in LiteRT's files, in its own runtime, against NumPy."""

import numpy as np
import pytest
from served_models import on_tensorflow

from keras_imm.serving import litert_weights


@on_tensorflow
@pytest.mark.slow("a conversion")
def test_matrices_that_fit_are_halved_and_nothing_else_changes():
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter
    from tensorflow.lite.tools import flatbuffer_utils

    rng = np.random.default_rng(0)
    matrix, other = rng.standard_normal((2, 64, 64)).astype("float32")
    other[3, 5] = 1e5  # beyond float16
    vector = rng.standard_normal(64).astype("float32")

    @tf.function(input_signature=[tf.TensorSpec((None, 64), name="x")])
    def function(x):
        return {"y": tf.matmul(tf.matmul(x, matrix) + vector, other)}

    signature = function.get_concrete_function()
    content = tf.lite.TFLiteConverter.from_concrete_functions([signature]).convert()
    narrow = litert_weights.narrowed(content)
    saved = len(content) - len(narrow)
    assert 0.9 * matrix.nbytes / 2 < saved < matrix.nbytes / 2
    before, after = map(flatbuffer_utils.convert_bytearray_to_object, (content, narrow))
    for one, two in zip(before.metadata, after.metadata, strict=True):
        old, new = before.buffers[one.buffer].data, after.buffers[two.buffer].data
        np.testing.assert_array_equal(old, new)
    x = rng.standard_normal((3, 64)).astype("float32")
    interpreter = Interpreter(model_content=narrow)
    interpreter.resize_tensor_input(0, x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    found = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    rounded = matrix.astype("float16").astype("float64")
    expected = (x @ rounded + vector) @ other.astype("float64")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    exact = (x @ matrix.astype("float64") + vector) @ other.astype("float64")
    assert np.abs(found - exact).max() > 10 * np.abs(found - expected).max()
