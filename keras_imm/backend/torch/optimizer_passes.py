"""Optimizer steps in few passes over memory under PyTorch."""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from keras import ops

from keras_imm.backend import keras_private

# Of each optimizer: the tensor of its iterations, how often it had been changed, and
# its value then.
_COUNTS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

# From where on the length of RAdam's average is above its limit of 5 in any rounding.
_RECTIFIED = 5.5


@contextlib.contextmanager
def fused_updates(optimizer: Any) -> Iterator[None]:
    """Inside, an optimizer updates all variables in few calls of PyTorch.

    Keras makes three passes over memory for the average of the weights, eleven for Adam
    where PyTorch has one, and one for a weight decay of 0. Nothing waits for the
    device.
    """
    inner = keras_private.unwrap_optimizer(optimizer)
    with _counted_steps(inner) as count:
        replacements = {
            "averages": _with_count(_update_averages, count),
            "clipping": _clip,
            "decay": _decay,
        }
        if _is_adam(optimizer):
            replacements["step"] = _with_count(_update_adam, count)
        elif _is_radam(inner):
            replacements["step"] = _with_count(_update_radam, count)
        with keras_private.replaced_updates(optimizer, replacements):
            yield


@contextlib.contextmanager
def _counted_steps(optimizer: Any) -> Iterator[Callable]:
    """A function that returns the number of steps so far.

    The device is asked where anything but these steps has changed it.
    """
    iterations = optimizer.iterations.value
    before = iterations._version
    known = _COUNTS.pop(optimizer, None)
    steps = None
    if known is not None and known[0] is iterations and known[1] == before:
        steps = known[2]

    def count():
        nonlocal steps
        if steps is None:
            steps = int(iterations)
        return steps

    yield count
    changes = iterations._version - before
    if steps is not None and changes in (0, 1):  # none where the step was left out
        _COUNTS[optimizer] = iterations, before + changes, steps + changes


def forget_steps(optimizer: Any) -> None:
    """Has the next step ask the device how many there were before it."""
    _COUNTS.pop(keras_private.unwrap_optimizer(optimizer), None)


def _with_count(function: Callable, count: Callable) -> Callable:
    def call(*args):
        with torch.no_grad():
            return function(count, *args)

    return call


def _is_adam(optimizer: Any) -> bool:
    """Whether Keras's own Adam or AdamW will update all variables at once."""
    inner = keras_private.unwrap_optimizer(optimizer)
    return (
        keras_private.is_own_optimizer(optimizer)
        and type(inner).__name__ in ("Adam", "AdamW")
        and not inner.amsgrad
    )


def _is_radam(optimizer: Any) -> bool:
    """Whether it is this library's RAdam."""
    kind = type(optimizer)
    return (kind.__module__, kind.__name__) == ("keras_imm.optimizers.radam", "RAdam")


def _update_averages(
    count: Callable, optimizer: Any, each: Callable, variables: list
) -> None:
    """What Keras's own `each` computes, up to rounding."""
    of_weight = {id(w): a for w, a in keras_private.moving_averages(optimizer)}
    pairs = [(v.value, of_weight[id(v)].value) for v in variables if id(v) in of_weight]
    if len({(v.dtype, v.device) for pair in pairs for v in pair}) != 1:
        each(variables)
        return
    weights, averages = map(list, zip(*pairs, strict=True))
    if count() == 0:
        torch._foreach_copy_(averages, weights)
        return
    momentum = np.asarray(optimizer.ema_momentum, _numpy_dtype(weights[0]))
    torch._foreach_lerp_(averages, weights, float(1 - momentum))


def _numpy_dtype(tensor: Any) -> str:
    """In which numbers are rounded before they multiply a tensor."""
    return "float64" if tensor.dtype == torch.float64 else "float32"


def _clip(optimizer: Any, own: Callable, gradients: list) -> list:
    """What Keras's `own` computes, up to rounding: with one norm for all at once."""
    present = [g for g in gradients if g is not None]
    limit = optimizer.global_clipnorm
    kinds = {(g.dtype, g.device) for g in present}
    if optimizer.clipnorm or not limit or len(kinds) != 1:
        return own(gradients)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(present)))
    scale = limit * torch.minimum(1.0 / norm, torch.full_like(norm, 1.0 / limit))
    scale = scale + (norm - norm)  # not a number, unless the norm is finite
    clipped = iter(torch._foreach_mul(present, scale))
    return [g if g is None else next(clipped) for g in gradients]


def _decay(optimizer: Any, own: Callable, variables: list) -> None:
    """Keras's own, but for a decay of 0."""
    if optimizer.weight_decay:
        own(variables)


def _update_adam(
    count: Callable,
    optimizer: Any,
    own: Callable,
    gradients: list,
    variables: list,
    learning_rate: Any,
) -> None:
    """What Keras's `own` update of Adam computes, up to rounding."""
    tensors = _tensors(optimizer, gradients, variables)
    if tensors is None:
        own(gradients, variables, learning_rate)
    else:
        _fused_adam(optimizer, tensors, count() + 1, learning_rate, scale=1.0)


def _update_radam(
    count: Callable,
    optimizer: Any,
    own: Callable,
    gradients: list,
    variables: list,
    learning_rate: Any,
) -> None:
    """What RAdam's `own` update computes, up to rounding; see there.

    Once it is rectified it is Adam with another learning rate.
    """
    tensors = _tensors(optimizer, gradients, variables)
    step, beta = count() + 1, optimizer.beta_2
    longest = 2 / (1 - beta) - 1
    length = 0.0
    if longest > _RECTIFIED:
        exponent = step * math.log(beta)  # of beta^step, which becomes 0
        length = longest + 2 * step * math.exp(exponent) / math.expm1(exponent)
    if tensors is None or length < _RECTIFIED:
        own(gradients, variables, learning_rate)
        return
    rectification = math.sqrt(
        ((length - 4) * (length - 2) * longest)
        / ((longest - 4) * (longest - 2) * length)
    )
    _fused_adam(optimizer, tensors, step, learning_rate, rectification)


def _tensors(optimizer: Any, gradients: list, variables: list) -> tuple | None:
    """Weights, gradients and both moments, if PyTorch's kernel takes them."""
    weights = [v.value for v in variables]
    momentums, velocities = keras_private.adam_moments(optimizer, variables)
    # The kernel walks through memory, whatever the strides: those of a convolution's
    # gradient are not its weight's.
    state = [*weights, *momentums, *velocities]
    contiguous = all(t.is_contiguous() for t in state)
    kinds = {(t.dtype, t.device) for t in (*state, *gradients)}
    if not contiguous or len(kinds) != 1 or state[0].dtype != torch.float32:
        return None
    return weights, [g.contiguous() for g in gradients], momentums, velocities


def _fused_adam(
    optimizer: Any, tensors: tuple, step: int, learning_rate: Any, scale: float
) -> None:
    """One pass over all tensors; `step` counts from 1."""
    weights = tensors[0]
    device = weights[0].device
    # Its value would have to be waited for.
    rate = ops.convert_to_tensor(learning_rate, "float32") * scale
    torch._fused_adam_(
        *tensors,
        [],
        [torch.full((), float(step), device=device)] * len(weights),
        lr=rate,
        beta1=optimizer.beta_1,
        beta2=optimizer.beta_2,
        weight_decay=0.0,  # has been done
        # PyTorch adds it after the second moment is corrected, Keras before.
        eps=optimizer.epsilon / math.sqrt(1 - optimizer.beta_2**step),
        amsgrad=False,
        maximize=False,
    )
