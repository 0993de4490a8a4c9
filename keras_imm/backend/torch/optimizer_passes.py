"""Optimizer steps in few passes over memory under PyTorch."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from keras_imm.backend import keras_private


@contextlib.contextmanager
def fused_updates(optimizer: Any) -> Iterator[None]:
    """Inside, an optimizer updates all variables in few calls of PyTorch.

    Keras makes three calls for the average of each variable, and eleven passes over the
    variables for Adam where PyTorch has one.
    """
    replacements = {"averages": _update_averages}
    if _is_adam(optimizer):
        replacements["step"] = _update_adam
    with keras_private.replaced_updates(optimizer, replacements):
        yield


def _is_adam(optimizer: Any) -> bool:
    """Whether Keras's own Adam or AdamW will update all variables at once."""
    inner = keras_private.unwrap_optimizer(optimizer)
    return (
        keras_private.is_own_optimizer(optimizer)
        and type(inner).__name__ in ("Adam", "AdamW")
        and not inner.amsgrad
    )


def _update_averages(optimizer: Any, each: Callable, variables: list) -> None:
    """What Keras's own `each` computes, with its rounding."""
    of_weight = {id(w): a for w, a in keras_private.moving_averages(optimizer)}
    pairs = [(v.value, of_weight[id(v)].value) for v in variables if id(v) in of_weight]
    dtypes = {value.dtype for pair in pairs for value in pair}
    if len(dtypes) != 1:
        each(variables)
        return
    weights, averages = map(list, zip(*pairs, strict=True))
    started = (optimizer.iterations.value != 0).to(dtypes.pop())
    momentum = started * optimizer.ema_momentum
    torch._foreach_mul_(averages, momentum)
    torch._foreach_add_(averages, torch._foreach_mul(weights, 1 - momentum))


def _update_adam(
    optimizer: Any, own: Callable, gradients: list, variables: list, learning_rate: Any
) -> None:
    """What Keras's `own` update of Adam computes, up to rounding.

    On a CPU alone: PyTorch's kernel takes epsilon as a number, and Keras's epsilon
    depends on the step, for which a GPU would be waited for.
    """
    weights = [v.value for v in variables]
    momentums, velocities = keras_private.adam_moments(optimizer, variables)
    # The kernel walks through memory, whatever the strides: those of a convolution's
    # gradient are not its weight's.
    state = [*weights, *momentums, *velocities]
    kinds = {(t.dtype, t.device.type, t.is_contiguous()) for t in state}
    if kinds != {(torch.float32, "cpu", True)} or any(
        g.dtype != torch.float32 for g in gradients
    ):
        own(gradients, variables, learning_rate)
        return
    step = int(optimizer.iterations.value) + 1
    torch._fused_adam_(
        weights,
        [g.contiguous() for g in gradients],
        momentums,
        velocities,
        [],
        [torch.tensor(float(step))] * len(variables),
        lr=float(learning_rate),
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        weight_decay=0.0,  # has been done
        # PyTorch adds it after the second moment is corrected, Keras before.
        eps=optimizer.epsilon / math.sqrt(1 - optimizer.beta_2**step),
        amsgrad=False,
        maximize=False,
    )
