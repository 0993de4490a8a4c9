"""From a batch of data to a loss: what every backend's train step differentiates."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_imm import backend
from keras_imm.backend.attention import without_recomputation
from keras_imm.backend.random_streams import random_states
from keras_imm.flow_map import FlowMap, Network
from keras_imm.objectives.averaged_weights import AveragedWeights
from keras_imm.objectives.objective import Objective
from keras_imm.validation import batch_size_message, check_batch_size


class Batch(NamedTuple):
    """What one step is about.

    Attributes:
        particles: The objective's particles.
        augmentation_labels: What was done to the data, for the network alone, shape
            (batch, augmentation labels), or None.
    """

    particles: Any
    augmentation_labels: Any = None

    @property
    def dtype(self) -> str:
        """Dtype of the samples, at least float32."""
        dtypes = [
            keras.backend.standardize_dtype(field.dtype)
            for field in self.particles
            if field is not None
        ]
        dtype = next(filter(keras.backend.is_float_dtype, dtypes))
        return keras.backend.result_type(dtype, "float32")


class BatchLoss:
    """Draws, targets and losses of an objective, for a flow map in training.

    Args:
        flow_map: The `FlowMap`.
        objective: The `Objective`.
        seed_generator: The random stream of times, noise and dropped labels.
        accumulation_steps: Parts of a batch whose gradients are averaged.
        augmentation: Layer that is called as `x, labels = augmentation(x,
            training=True)` on training data, or None.
        averages: `AveragedWeights`, or None.
    """

    def __init__(
        self,
        flow_map: FlowMap,
        objective: Objective,
        seed_generator: keras.random.SeedGenerator,
        accumulation_steps: int = 1,
        augmentation: keras.layers.Layer | None = None,
        averages: AveragedWeights | None = None,
    ):
        self.flow_map = flow_map
        self.objective = objective
        self.accumulation_steps = accumulation_steps
        self.averages = averages
        self._seed_generator = seed_generator
        self._augmentation = augmentation

    def random_states(self) -> list[keras.Variable]:
        """States of all random streams that a step draws from."""
        layers = (self.flow_map.backbone, self._augmentation)
        states = [state for layer in layers for state in random_states(layer)]
        return [self._seed_generator.state, *states]

    def draw(
        self,
        data: Any,
        iterations: Any,
        devices: int = 1,
        training: bool = True,
    ) -> Batch:
        """Times, noise and labels of one batch, from the model's random stream.

        Args:
            data: x of shape (batch, ...), or (x, labels).
            iterations: Optimizer steps so far, an integer tensor; None in an
                evaluation, where progress is 1.
            devices: Devices that share the batch.
            training: Whether to augment the data and drop labels.

        Returns:
            A `Batch`.

        Raises:
            ValueError: If the data are not what the model takes.
        """
        x, labels = self._checked(data, training)
        check_batch_size(
            x.shape[0],
            self.objective.rows_together,
            self.accumulation_steps if training else 1,
            devices,
            self.objective.rows_argument,
        )
        augmentation_labels = None
        with backend.traceable_draws():
            if training and self._augmentation is not None:
                x, augmentation_labels = self._augmentation(x, training=True)
            particles = self.objective.draw(
                Network(self.flow_map, training=training),
                x,
                labels,
                self._seed_generator,
                self._progress(iterations),
                training,
            )
        return Batch(particles, augmentation_labels)

    def micro_batch(self, batch: Batch, index: Any) -> Batch:
        """Part `index` of `accumulation_steps` equal parts, whole groups each.

        Every `accumulation_steps`-th group: each of the devices that share a batch
        finds its share of a part in its share of the batch.
        """
        groups = (-1, self.accumulation_steps, self.objective.rows_together)

        def part(field):
            if field is None:
                return None
            shape = tuple(field.shape[1:])
            chosen = ops.take(ops.reshape(field, groups + shape), index, axis=1)
            return ops.reshape(chosen, (-1, *shape))

        particles = type(batch.particles)(*map(part, batch.particles))
        return Batch(particles, part(batch.augmentation_labels))

    def target(self, batch: Batch, iterations: Any, training: bool = True) -> Any:
        """What the loss compares with; nothing is kept for its gradient.

        Each of its calls of the network draws the masks of dropout that the loss's
        first one draws again.

        Args:
            batch: What `draw` returned, or a micro-batch.
            iterations: As in `draw`.
            training: Whether the backbone's dropout is on.

        Returns:
            The objective's target.
        """
        states = random_states(self.flow_map.backbone)
        before = [state.value * 1 for state in states]
        with without_recomputation():
            network = self._network(batch, iterations, training, masks=before)
            target = self.objective.target(network, batch.particles)
        for state, value in zip(states, before, strict=True):
            state.assign(value)
        return keras.tree.map_structure(
            lambda x: (
                None if x is None else ops.stop_gradient(ops.convert_to_tensor(x))
            ),
            target,
        )

    def loss(
        self, batch: Batch, target: Any, iterations: Any, training: bool = True
    ) -> tuple[Any, dict[str, Any]]:
        """The scalar to differentiate, and further scalars by name.

        Args:
            batch: What `draw` returned, or a micro-batch.
            target: What `target` returned.
            iterations: As in `draw`.
            training: Whether the backbone's dropout is on.

        Returns:
            The loss and a dictionary.
        """
        network = self._network(batch, iterations, training)
        loss = self.objective.loss(network, batch.particles, target)
        loss, others = loss if isinstance(loss, tuple) else (loss, {})
        loss = ops.convert_to_tensor(loss)
        if tuple(loss.shape) != ():  # TensorFlow would differentiate the sum
            raise ValueError(
                f"`{type(self.objective).__name__}.loss` must return a scalar, or a "
                f"pair of it and a dict. Received: shape {tuple(loss.shape)}"
            )
        return loss, {k: ops.convert_to_tensor(v) for k, v in others.items()}

    def evaluate(self, data: Any, devices: int = 1) -> tuple[Any, dict[str, Any]]:
        """The loss of one batch of an evaluation: all data as they are, raw weights.

        Args:
            data: As in `draw`.
            devices: As in `draw`.

        Returns:
            As `loss`.
        """
        batch = self.draw(data, None, devices, training=False)
        target = self.target(batch, None, training=False)
        return self.loss(batch, target, None, training=False)

    def update_averages(self, before: Any, after: Any) -> None:
        """Moves the averages after a step; see `AveragedWeights.update`."""
        self.averages.update(before, after)

    def check_gradients(self, gradients: list) -> None:
        """Raises ValueError if no weight has a gradient; None stands for none."""
        if gradients and all(gradient is None for gradient in gradients):
            raise ValueError(
                f"No weight has a gradient of `{type(self.objective).__name__}.loss`: "
                "it does not depend on the network, or a derivative was lost."
            )

    def batch_divisor(self, training: bool) -> int:
        """What the batch of one device must be a multiple of."""
        steps = self.accumulation_steps if training else 1
        return self.objective.rows_together * steps

    def batch_size_message(self, training: bool, devices: int = 1) -> str:
        """What is wrong with a batch size, up to the batch size."""
        return batch_size_message(
            self.objective.rows_together,
            self.accumulation_steps if training else 1,
            devices,
            self.objective.rows_argument,
        )

    def _network(
        self,
        batch: Batch,
        iterations: Any,
        training: bool,
        masks: list | None = None,
    ) -> Network:
        weights = None
        if self.averages is not None:
            has_begun = None if iterations is None else iterations > 0

            def weights(name):
                return self.averages.values(name, has_begun)

        return Network(
            self.flow_map,
            augmentation_labels=batch.augmentation_labels,
            training=training,
            weights=weights,
            masks=masks,
        )

    def _progress(self, iterations: Any) -> Any:
        """How much of the training is done, a tensor in [0, 1]."""
        if iterations is None:
            return ops.ones(())
        done = ops.cast(iterations, "float32")
        total = self.objective.total_steps
        if total is None and self.objective.needs_total_steps:
            raise ValueError(
                f"{type(self.objective).__name__} follows the progress of training: "
                "give it `total_steps`, or train with `fit`, which counts them. "
                "Received: total_steps=None"
            )
        return ops.clip(done / float(total), 0.0, 1.0) if total else done * 0.0

    def _checked(self, data: Any, training: bool) -> tuple[Any, Any]:
        """x and labels, or None."""
        x, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if sample_weight is not None:
            raise ValueError("No sample weights are taken; data is x or (x, labels).")
        x = ops.convert_to_tensor(x)  # `train_on_batch` hands on arrays
        kind = keras.backend.standardize_dtype(x.dtype)
        if not keras.backend.is_float_dtype(kind):
            raise ValueError(
                "Training data must be floating point, scaled to a standard deviation "
                f"of `sigma_data`={self.flow_map.sigma_data}. Received: dtype {kind}"
            )
        num_classes = self.flow_map.num_classes
        if not num_classes:
            return x, None
        if labels is None:
            if training and self.objective.label_dropout < 1.0:
                raise ValueError(
                    f"The backbone has num_classes={num_classes}: data must be "
                    "(x, labels). Received: x alone"
                )
            return x, None
        _check_labels(labels)
        return x, ops.cast(ops.reshape(labels, (-1,)), "int32")


def _check_labels(labels: Any) -> None:
    """Raises ValueError unless labels are integers, one per sample."""
    kind = keras.backend.standardize_dtype(labels.dtype)
    one_each = len(labels.shape) == 1 or tuple(labels.shape[1:]) == (1,)
    if not keras.backend.is_int_dtype(kind) or not one_each:
        raise ValueError(
            "Labels must be integers of shape (batch,). "
            f"Received: shape {tuple(labels.shape)}, dtype {kind}"
        )
