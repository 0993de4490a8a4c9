"""What `generate` is asked for: how many samples, of which labels, from which noise."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from keras_imm.flow_map import FlowMap
from keras_imm.samplers.plan import check_labels
from keras_imm.validation import check_integer


@dataclasses.dataclass(frozen=True)
class SamplingRequest:
    """Labels and noise that agree on a number of samples.

    Attributes:
        count: Number of samples, positive.
        labels: int32 array (count,), or None for the null label.
        noise: Standard-normal array (draws, count, ...), or None to draw it.
    """

    count: int
    labels: np.ndarray | None
    noise: np.ndarray | None

    @classmethod
    def checked(
        cls, flow: FlowMap, draws: int, labels: Any, num_samples: Any, noise: Any
    ) -> "SamplingRequest":
        """The request of some arguments of `generate`.

        Args:
            flow: The flow map.
            draws: Draws of noise that the sampler takes for a sample.
            labels: As in `FlowMapModel.generate`.
            num_samples: As in `FlowMapModel.generate`.
            noise: As in `FlowMapModel.generate`.

        Raises:
            ValueError: If the flow map has no such labels, the noise has another
                shape, or the sizes disagree.
        """
        labels = checked_labels(flow, labels)
        if num_samples is not None:
            check_integer("num_samples", num_samples, at_least=1)
        sizes = {"num_samples": num_samples}
        if noise is not None:
            noise = _checked_noise(flow, noise, draws)
            sizes["noise"] = noise.shape[1]
        if labels is not None and labels.ndim == 1:
            sizes["labels"] = len(labels)
        known = {name: size for name, size in sizes.items() if size is not None}
        if len(set(known.values())) > 1 or 0 in known.values():
            raise ValueError(
                "`num_samples`, `labels` and `noise` must agree on a positive number "
                f"of samples. Received: {known}"
            )
        count = next(iter(known.values()), 1)
        if labels is not None and labels.ndim == 0:
            labels = np.full(count, labels)
        return cls(count, labels, noise)

    def batches(self, batch_size: int) -> Iterator["SamplingRequest"]:
        """Requests of one size; the last one repeats its last row to keep it."""
        if batch_size == self.count:
            yield self
            return
        for start in range(0, self.count, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), self.count - 1)
            yield SamplingRequest(
                batch_size,
                None if self.labels is None else self.labels[rows],
                None if self.noise is None else self.noise[:, rows],
            )


def checked_labels(flow: FlowMap, labels: Any) -> np.ndarray | None:
    """Labels as int32, of no axis or one.

    Raises:
        ValueError: If the flow map has no such labels.
    """
    if labels is None:
        return None
    if not flow.num_classes:
        raise ValueError(
            "The backbone is unconditional (num_classes=0). "
            f"Received: labels={labels!r}"
        )
    if not isinstance(labels, np.ndarray):
        labels = np.asarray(ops.convert_to_numpy(labels))
    if labels.ndim > 1 or labels.dtype.kind not in "iu":
        raise ValueError(
            "`labels` must be integers of shape (num_samples,). "
            f"Received: shape {labels.shape}, dtype {labels.dtype}"
        )
    check_labels(labels, flow.num_classes)
    return labels.astype("int32")


def _checked_noise(flow: FlowMap, noise: Any, draws: int) -> np.ndarray:
    """Noise of shape (1 or `draws`, num_samples, ...)."""
    noise = np.asarray(ops.convert_to_numpy(noise))
    shape = flow.data_shape or ()
    if noise.shape[1:] == shape:
        return noise[None]
    if noise.shape[2:] == shape and noise.shape[0] == draws:
        return noise
    sizes = ", ".join(map(str, shape))
    raise ValueError(
        f"`noise` must have shape (num_samples, {sizes}), or with all draws "
        f"({draws}, num_samples, {sizes}). Received: shape {noise.shape}"
    )
