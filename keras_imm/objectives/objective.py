"""The contract between an objective and everything that trains with it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
from keras import ops

from keras_imm.flow_map import FlowMap, Network
from keras_imm.validation import check_fraction, check_integer


class Objective:
    """Base class of objectives: the loss of one batch, given a network.

    A train step draws particles, computes their target without keeping anything for
    the gradient, and differentiates the loss:

        particles = objective.draw(network, x, labels, seed, progress, training)
        target = objective.target(network, particles)
        loss = objective.loss(network, particles, target)

    A subclass implements `draw` and `loss`, `target` if it has one, and `get_config`,
    and is registered for saving with
    `keras.saving.register_keras_serializable(package="keras_imm.objectives")`, or a
    package of its own. Its particles are a NamedTuple: every field is None or a tensor
    with the batch as its first axis.

    Args:
        label_dropout: Probability in [0, 1] that `drop_labels` makes a label the null
            label while training.
        total_steps: Training steps over which `progress` goes from 0 to 1. Default:
            those of the first `fit`.

    Attributes:
        rows_together: Rows of a batch that are never parted, neither into micro-batches
            nor among devices: a group of particles, or a period of the roles that rows
            have by their place.
        network_passes: What a training step costs, in forward passes of the network
            for the whole batch; a backward pass is 2.
        averages: Momentum by name of the averages of the weights that the target
            takes, `network.with_weights(name)`. The model keeps and saves them.
        sampler: Default of the argument of `generate` with this name.
        time_grid: As `sampler`. A list of eta is for its own number of steps; with
            another the grid is uniform.
        num_steps: As `sampler`.
        flow_map: The arguments of `FlowMap` that the objective wants; another
            explicit one is taken with a warning.
        needs_total_steps: Whether it uses `progress`, so that `fit` must know the
            number of steps.
        jumps_without_label: Whether jumps are trained for dropped labels, too, and not
            the velocity alone.
        pieces: Names of the arguments that are objects with a config of their own,
            which `get_config` and `from_config` carry over.
        presets: By name arguments that were published.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    class Noised(NamedTuple):
        x: Any
        x_t: Any
        t: Any
        labels: Any = None

    @keras.saving.register_keras_serializable(package="my_project")
    class Denoising(keras_imm.objectives.Objective):
        network_passes = 3.0  # the output and its backward pass, without a target

        def draw(self, network, x, labels, seed, progress, training):
            t = keras.random.uniform((ops.shape(x)[0],), 0.0, 0.9, seed=seed)
            noise = network.sigma_data * keras.random.normal(ops.shape(x), seed=seed)
            alpha = per_sample(network.schedule.alpha(t), x)
            sigma = per_sample(network.schedule.sigma(t), x)
            labels = self.drop_labels(network, labels, seed, training)
            return Noised(x, alpha * x + sigma * noise, t, labels)

        def loss(self, network, particles, target):
            p = particles
            x = network.flow_map(p.x_t, p.t, ops.zeros_like(p.t), p.labels)
            return ops.mean(ops.square(x - p.x))

    model = keras_imm.FlowMapModel(backbone, objective=Denoising())
    ```
    """

    rows_together: int = 1
    network_passes: float = 4.0
    averages: Mapping[str, float] = {}
    sampler: Any = "pushforward"
    time_grid: str | Sequence[float] = "uniform"
    num_steps: int = 2
    flow_map: ClassVar[Mapping[str, Any]] = {}
    needs_total_steps: bool = False
    jumps_without_label: bool = True
    rows_argument: ClassVar[str] = "rows_together"  # what messages call that number
    pieces: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, label_dropout: float = 0.1, total_steps: int | None = None):
        check_fraction("label_dropout", label_dropout)
        if total_steps is not None:
            check_integer("total_steps", total_steps, at_least=1)
        self.label_dropout = label_dropout
        self.total_steps = total_steps

    def check(self, flow_map: FlowMap) -> None:
        """Raises ValueError if the objective is not defined for a flow map."""

    def draw(
        self,
        network: Network,
        x: Any,
        labels: Any,
        seed: keras.random.SeedGenerator,
        progress: Any,
        training: bool,
    ) -> Any:
        """Times, noise and labels of a batch.

        Args:
            network: For its schedule, times and null label.
            x: Data of standard deviation `network.sigma_data`, shape (batch, ...).
            labels: Integers of shape (batch,), or None.
            seed: Seed generator; it is called for each draw.
            progress: Scalar tensor in [0, 1]: how much of the training is done.
            training: False in an evaluation, where no label is dropped.

        Returns:
            The particles.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `draw`.")

    def target(self, network: Network, particles: Any) -> Any:
        """What the loss compares with, computed without a gradient, or None.

        Args:
            network: The network. In calls with all rows dropout draws the masks that
                it draws in the first call of the loss.
            particles: What `draw` returned, or rows of it that stay together.

        Returns:
            None, a tensor, or a structure of tensors.
        """
        return None

    def loss(self, network: Network, particles: Any, target: Any) -> Any:
        """The scalar to differentiate.

        Args:
            network: The network, differentiable.
            particles: What `draw` returned, or rows of it that stay together.
            target: What `target` returned.

        Returns:
            Scalar tensor, or a pair of it and a dictionary of further scalars by name,
            whose means go into the history.
        """
        raise NotImplementedError(f"{type(self).__name__} does not implement `loss`.")

    def drop_labels(
        self, network: Network, labels: Any, seed: Any, training: bool
    ) -> Any:
        """Labels some of which have become the null label, while training.

        Raises:
            ValueError: If the network has no null label.
        """
        if labels is None or not training or not self.label_dropout:
            return labels
        if network.null_label is None:
            raise ValueError(
                "`label_dropout` > 0 needs a backbone with `num_classes` > 0. "
                f"Received: label_dropout={self.label_dropout!r}, num_classes=0"
            )
        draws = keras.random.uniform((ops.shape(labels)[0],), seed=seed)
        null = ops.zeros_like(labels) + network.null_label
        return ops.where(draws < self.label_dropout, null, labels)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "Objective":
        """The objective with the arguments that were published for a data set.

        Args:
            name: One of `presets`.
            **overrides: Arguments that replace the preset's.

        Returns:
            The objective.

        Raises:
            ValueError: If the name is not known.
        """
        if name not in cls.presets:
            known = ", ".join(map(repr, cls.presets)) or "none"
            raise ValueError(
                f"`name` must be a preset of {cls.__name__}: {known}. "
                f"Received: name={name!r}"
            )
        return cls(**{**cls.presets[name], **overrides})

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        return {
            "label_dropout": self.label_dropout,
            "total_steps": self.total_steps,
            **{
                name: keras.saving.serialize_keras_object(getattr(self, name))
                for name in self.pieces
            },
        }

    @classmethod
    def from_config(cls, config: dict) -> "Objective":
        """The objective that `get_config` described."""
        pieces = {
            name: keras.saving.deserialize_keras_object(config[name])
            for name in cls.pieces
            if name in config  # not all are in a file of an earlier version
        }
        return cls(**{**config, **pieces})
