"""Inductive Moment Matching as one model: a flow map trained by moment matching."""

from typing import Any

import keras

from keras_imm import (
    kernels,
    objectives,
    parameterizations,
    schedules,
    time_distributions,
    time_mappings,
    weightings,
)
from keras_imm.model import FlowMapModel
from keras_imm.validation import check_choice, check_positive_number, check_times

_OF_OBJECTIVE = (
    "time_mapping",
    "kernel",
    "weighting",
    "group_size",
    "label_dropout",
    "drop_target_labels",
    "times",
    "flow_matching_share",
)


@keras.saving.register_keras_serializable(package="keras_imm")
class IMM(FlowMapModel):
    """Inductive Moment Matching: a few-step generator trained in one stage.

    The model learns a flow map f_{s,t} that carries samples at time t to time s, by
    matching the distribution it reaches from t with the one it reaches from a
    slightly earlier r. It is a `FlowMapModel` with the objective `MomentMatching`.

    Args:
        backbone: As in `FlowMapModel`, which documents all call arguments, too.
        schedule: "flow_matching", "cosine" or a `keras_imm.schedules.Schedule`.
        parameterization: "euler_fm", "simple_edm", "identity" or a
            `keras_imm.parameterizations.Parameterization`.
        time_mapping: "eta_decrement", "time_decrement", "log_snr_decrement",
            "inverse_eta_increment" or a `keras_imm.time_mappings.TimeMapping`.
        kernel: "laplace", "rbf", "energy" or a `keras_imm.kernels.Kernel`, such as
            `PseudoHuber(c)`.
        weighting: "elbo", "uniform" or a `keras_imm.weightings.Weighting`.
        second_time: Second time input of the backbone: "s", or "stride" for t - s.
        time_scale: Positive factor of the times that the backbone sees.
        group_size: Particles per group, M in the paper. A positive integer that
            divides the batch.
        accumulation_steps: Positive integer. Each batch is split into this many
            micro-batches whose gradients are averaged before one optimizer step.
        sigma_data: Standard deviation of the data, and of the noise. Positive.
        min_time: Start of the time range, epsilon in the paper; in [0, max_time).
        max_time: End of the time range, T in the paper; in (min_time, 1]. 0.994 for
            flow matching, 0.996 for cosine.
        label_dropout: Probability in [0, 1] that a label becomes the null label
            while training.
        drop_target_labels: Whether a dropped label is dropped in both passes, as in
            Algorithm 3, or in the pass with gradient alone.
        seed: Integer that starts the model's one random stream.
        augmentation: As in `FlowMapModel`.
        times: "uniform", "logit_normal" or a
            `keras_imm.time_distributions.TimeDistribution` of (s, t).
        flow_matching_share: Share in [0, 1) of the groups that learn the flow's
            velocity in place of jumps; see `keras_imm.objectives.MomentMatching`.
        **kwargs: `name` and other arguments of `keras.Model`.

    Raises:
        ValueError: If an argument is out of its range.

    Example:

    ```python
    backbone = keras_imm.backbones.DiT(image_shape=(8, 8, 1), num_classes=10)
    model = keras_imm.IMM(backbone)
    model.compile(keras.optimizers.AdamW(1e-4, epsilon=1e-8, use_ema=True))
    model.fit(dataset, epochs=10)      # yields images, or (images, labels)
    images = model.generate(labels=[3, 1, 4], num_steps=2)
    model.save("model.keras")
    # The averaged weights come back with the optimizer: not with `compile=False`.
    model = keras.models.load_model("model.keras")
    ```

    Reference: Zhou, Ermon, Song, Inductive Moment Matching, ICML 2025.
    """

    def __init__(
        self,
        backbone: keras.layers.Layer,
        schedule: str | schedules.Schedule = "flow_matching",
        parameterization: str | parameterizations.Parameterization = "euler_fm",
        time_mapping: str | time_mappings.TimeMapping = "eta_decrement",
        kernel: str | kernels.Kernel = "laplace",
        weighting: str | weightings.Weighting = "elbo",
        second_time: str = "s",
        time_scale: float = 1000.0,
        group_size: int = 4,
        accumulation_steps: int = 1,
        sigma_data: float = 0.5,
        min_time: float = 0.0,
        max_time: float = 0.994,
        label_dropout: float = 0.1,
        drop_target_labels: bool = True,
        seed: int = 0,
        augmentation: keras.layers.Layer | None = None,
        times: str | time_distributions.TimeDistribution = "uniform",
        flow_matching_share: float = 0.0,
        **kwargs: Any,
    ):
        # None, which has the objective choose in `FlowMapModel`, is no value here.
        check_choice("second_time", second_time, ("s", "stride"))
        check_positive_number("time_scale", time_scale)
        check_times(min_time, max_time)
        super().__init__(
            backbone,
            objectives.MomentMatching(
                time_mapping,
                kernel,
                weighting,
                group_size=group_size,
                label_dropout=label_dropout,
                drop_target_labels=drop_target_labels,
                times=times,
                flow_matching_share=flow_matching_share,
            ),
            schedule=schedules.get(schedule),
            parameterization=parameterizations.get(parameterization),
            second_time=second_time,
            time_scale=time_scale,
            min_time=min_time,
            max_time=max_time,
            sigma_data=sigma_data,
            accumulation_steps=accumulation_steps,
            seed=seed,
            augmentation=augmentation,
            **kwargs,
        )

    @property
    def time_mapping(self) -> time_mappings.TimeMapping:
        """The objective's r(s, t)."""
        return self.objective.time_mapping

    @property
    def kernel(self) -> kernels.Kernel:
        """The objective's kernel."""
        return self.objective.kernel

    @property
    def weighting(self) -> weightings.Weighting:
        """The objective's w(s, t)."""
        return self.objective.weighting

    @property
    def group_size(self) -> int:
        """Particles per group."""
        return self.objective.group_size

    @property
    def label_dropout(self) -> float:
        """Probability that a label becomes the null label while training."""
        return self.objective.label_dropout

    @property
    def drop_target_labels(self) -> bool:
        """Whether a dropped label is dropped in both passes."""
        return self.objective.drop_target_labels

    @property
    def times(self) -> time_distributions.TimeDistribution:
        """The objective's distribution of (s, t)."""
        return self.objective.times

    @property
    def flow_matching_share(self) -> float:
        """Share of the groups that learn the flow's velocity."""
        return self.objective.flow_matching_share

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments, for saving."""
        config = super().get_config()
        # Not asked for again: Keras marks what it serializes twice as shared.
        of_objective = config.pop("objective")["config"]
        return config | {name: of_objective[name] for name in _OF_OBJECTIVE}
