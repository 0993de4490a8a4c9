"""What can be served: named signatures of named arrays, whatever computes them."""

import abc
import dataclasses
from collections.abc import Mapping

import numpy as np

from keras_imm.serving.server.errors import RequestError

DEFAULT_SIGNATURE = "serving_default"
Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output.

    Attributes:
        dtype: Its type; `object` for strings of bytes.
        shape: Its shape with the rows first; None for any size.
    """

    dtype: np.dtype
    shape: tuple[int | None, ...]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape is such a tensor."""
        return len(shape) == len(self.shape) and all(
            own in (None, size) for own, size in zip(self.shape, shape, strict=True)
        )


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs by their names, in order."""

    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


class Servable(abc.ABC):
    """A model that answers rows, each for itself.

    Attributes:
        platform: Who computes, as "keras_torch".
        version: Positive integer.
        signatures: `Signature`s by their names.
        class_names: Names of the labels, or None.
        num_labels: How many labels there are, from 0; 0 where that is not known.
    """

    platform: str
    version: int
    signatures: Mapping[str, Signature]
    class_names: tuple[str, ...] | None = None
    num_labels: int = 0

    @abc.abstractmethod
    def run(self, name: str, inputs: Arrays) -> Arrays:
        """The outputs of a signature for inputs that `check` has passed.

        Raises:
            RequestError: If the values of the inputs are not allowed.
        """

    def warm_up(self) -> None:
        """Computes what would make the first requests slow."""
        return  # nothing, unless a subclass compiles

    def signature(self, name: str) -> Signature:
        """The signature of a name.

        Raises:
            RequestError: If there is none.
        """
        if name not in self.signatures:
            raise RequestError(
                f'Serving signature name: "{name}" not found in signature def. '
                f"There are: {', '.join(sorted(self.signatures))}"
            )
        return self.signatures[name]

    def check(self, name: str, inputs: Arrays) -> int:
        """The number of rows of inputs, once they are those of a signature.

        Raises:
            RequestError: If they are not.
        """
        wanted = self.signature(name).inputs
        for other in sorted(inputs.keys() - wanted.keys()):
            raise RequestError(f"`{other}` is no input of {name}: {_names(wanted)}.")
        for other in sorted(wanted.keys() - inputs.keys()):
            raise RequestError(f"Missing named input: {other} of {_names(wanted)}.")
        for key, tensor in wanted.items():
            array = inputs[key]
            if array.dtype != tensor.dtype or not tensor.fits(array.shape):
                raise RequestError(
                    f"`{key}` must be {tensor.dtype} of shape {_text(tensor.shape)}. "
                    f"Received: {array.dtype} of shape {_text(array.shape)}"
                )
        for key, array in inputs.items():
            if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
                raise RequestError(f"`{key}` must be of finite values.")
        counts = {key: len(array) for key, array in inputs.items()}
        if len(set(counts.values())) != 1:
            received = ", ".join(f"{key} {count}" for key, count in counts.items())
            raise RequestError(
                f"All inputs must have as many rows. Received: {received}"
            )
        rows = next(iter(counts.values()))
        if not rows:
            raise RequestError("A request must have at least one row. Received: 0")
        return rows


def _names(tensors: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted(tensors))


def _text(shape: tuple) -> str:
    return f"[{', '.join('rows' if n is None else str(n) for n in shape)}]"
