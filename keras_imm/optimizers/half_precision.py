"""Which optimizers can train weights that are in half precision themselves."""

import keras
import numpy as np
from keras import ops

from keras_imm.backend import keras_private
from keras_imm.optimizers.radam import RAdam

# Of these the first correct second moments, all divide by them, in the weights' dtype.
_CORRECTING = (keras.optimizers.Adam, keras.optimizers.Lamb, keras.optimizers.Nadam)
_DIVIDING = (*_CORRECTING, keras.optimizers.Adamax, RAdam)


def check_half_precision(optimizer: keras.optimizers.Optimizer) -> None:
    """Raises ValueError if the half precision of its weights is too little for an Adam.

    Where beta_2 is 1, so is beta_2**step, whose difference from 1 corrects the second
    moments. In float16 small second moments are 0, and steps are divided by epsilon.

    Args:
        optimizer: An optimizer, which is not looked at before it is built.
    """
    if not isinstance(optimizer, _DIVIDING) or not optimizer.built:
        return
    least = _least_epsilon_in_float16(optimizer)
    for dtype in {v.dtype for v in keras_private.optimized_variables(optimizer)}:
        rounded = ops.cast(ops.cast(optimizer.beta_2, dtype), "float32")
        is_one = float(ops.convert_to_numpy(rounded)) == 1.0
        problem = None
        if is_one and isinstance(optimizer, _CORRECTING):
            problem = f"its beta_2={optimizer.beta_2} is 1: take a smaller one"
        elif dtype == "float16" and optimizer.epsilon < least:
            problem = (
                f"small moments are 0 beside epsilon={optimizer.epsilon}: take one of "
                f"at least {least:.2g}"
            )
        if problem:
            raise ValueError(
                f"{type(optimizer).__name__} cannot train weights of {dtype}, in which "
                f'{problem}, or make the backbone with dtype="mixed_{dtype}"'
            )


def _least_epsilon_in_float16(optimizer: keras.optimizers.Optimizer) -> float:
    """With it no step is longer than the learning rate, up to rounding."""
    if isinstance(optimizer, keras.optimizers.Adamax):  # whose moments are no squares
        return float(np.finfo("float16").tiny)
    # Of gradients whose squares, times 1 - beta_2, are rounded to 0.
    rounded_away = float(np.finfo("float16").smallest_subnormal) / 2
    return float(np.sqrt(rounded_away / max(1.0 - optimizer.beta_2, rounded_away)))
