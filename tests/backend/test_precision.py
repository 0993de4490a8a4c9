"""Full precision of float32 products: inside a scope, and as it was after it."""

import keras
import pytest
from keras import ops

from keras_imm import backend


def test_full_precision_inside_and_what_was_before_after_it(set_tensorfloat32):
    set_tensorfloat32(True)
    assert backend.multiplies_in_tf32()
    with backend.full_precision():
        assert not backend.multiplies_in_tf32()
        with backend.full_precision():
            assert not backend.multiplies_in_tf32()
        assert not backend.multiplies_in_tf32()
    assert backend.multiplies_in_tf32()


def test_an_exception_puts_it_back(set_tensorfloat32):
    set_tensorfloat32(True)
    with pytest.raises(KeyError), backend.full_precision():
        raise KeyError
    assert backend.multiplies_in_tf32()


def test_it_leaves_switched_off_what_is_off(set_tensorfloat32):
    set_tensorfloat32(False)
    with backend.full_precision():
        pass
    assert not backend.multiplies_in_tf32()


def test_all_tests_run_at_full_precision():
    assert not backend.multiplies_in_tf32()


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="under JAX alone it is in the program"
)
def test_it_is_in_programs_that_are_traced_inside(set_tensorfloat32):
    import jax

    set_tensorfloat32(True)

    def both(x, kernel):
        return ops.matmul(ops.conv(x, kernel), ops.ones((2, 2)))

    def text():
        shapes = (1, 4, 4, 2), (1, 1, 2, 2)
        arguments = (jax.ShapeDtypeStruct(shape, "float32") for shape in shapes)
        return jax.jit(both).lower(*arguments).as_text()

    assert "HIGHEST" not in text()
    with backend.full_precision():
        inside = text()
    assert inside.count("HIGHEST") == 4  # two factors of two products
    assert "HIGHEST" not in text()
