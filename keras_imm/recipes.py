"""The published experiments by name, as data: Table 5 of the paper."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import keras

from keras_imm.augmentation import EDMAugmentation
from keras_imm.backbones import DiT, UNet
from keras_imm.imm import IMM
from keras_imm.optimizers import RAdam
from keras_imm.samplers import SamplingPlan
from keras_imm.time_mappings import EtaDecrement
from keras_imm.validation import check_choice
from keras_imm.weightings import ELBO

_BACKBONES = {"UNet": UNet, "DiT": DiT}
_OPTIMIZERS = {"RAdam": RAdam, "AdamW": keras.optimizers.AdamW}


@dataclass(frozen=True)
class Recipe:
    """One column of Table 5.

    Attributes:
        dataset: What the published model was trained on.
        backbone: "UNet" or "DiT".
        preset: Name of its preset.
        image_shape: Height, width and channels of images, or of latents.
        num_classes: Number of labels; 0 for none.
        dropout: Dropout rate inside the network.
        augmentation: Whether data are augmented as in EDM, with labels.
        schedule: Name of the schedule.
        parameterization: Name of the parameterization.
        second_time: "s" or "stride".
        time_scale: Factor of the times that the network sees.
        sigma_data: Standard deviation of the data.
        min_time: Start of the time range.
        max_time: End of the time range.
        k: Exponent of the eta-decrement mapping r(s, t).
        min_gap: Smallest gap t - r.
        kernel: Name of the kernel.
        a: Exponent a of the weighting.
        b: Offset b of the weighting.
        group_size: Particles per group, M.
        label_dropout: Probability that a label is dropped.
        optimizer: "RAdam" or "AdamW", which has no weight decay.
        learning_rate: Constant learning rate.
        beta_1: Decay of the optimizer's first moment.
        beta_2: Decay of the optimizer's second moment.
        epsilon: Epsilon of the optimizer.
        ema_momentum: Momentum of the averages of the weights.
        batch_size: Images per step.
        iterations: Steps.
        sampler: Name of the sampler.
        time_grid: "uniform", or eta values in sampling order.
        guidance_scale: Weight of classifier-free guidance; None for none.
        guidance_interval: Pair of times outside of which guidance is off; None for
            guidance at all times.
        fid: Pairs of a number of steps and the published FID of 50,000 samples.
    """

    dataset: str
    backbone: str
    preset: str
    image_shape: tuple[int, int, int]
    num_classes: int
    dropout: float
    augmentation: bool
    schedule: str
    parameterization: str
    second_time: str
    time_scale: float
    sigma_data: float
    min_time: float
    max_time: float
    k: int
    min_gap: float
    kernel: str
    a: int
    b: int
    group_size: int
    label_dropout: float
    optimizer: str
    learning_rate: float
    beta_1: float
    beta_2: float
    epsilon: float
    ema_momentum: float
    batch_size: int
    iterations: int
    sampler: str
    time_grid: str | tuple[float, ...]
    guidance_scale: float | None
    guidance_interval: tuple[float, float] | None
    fid: tuple[tuple[int, float], ...]

    def sampling_plan(self, num_steps: int | None = None) -> SamplingPlan:
        """How the published images were sampled.

        Args:
            num_steps: Steps, where not those of the recipe's `time_grid`. A grid of eta
                is taken where it makes as many; elsewhere it is uniform.

        Returns:
            A `SamplingPlan`.
        """
        grid = self.time_grid
        if not isinstance(grid, str) and num_steps not in (None, len(grid) + 1):
            grid = "uniform"
        return SamplingPlan(
            num_steps=num_steps,
            sampler=self.sampler,
            time_grid=grid,
            guidance_scale=self.guidance_scale,
            guidance_interval=self.guidance_interval,
        )


_CIFAR10 = Recipe(
    dataset="CIFAR-10, pixels scaled to [-1, 1]",
    backbone="UNet",
    preset="ddpmpp_cifar10",
    image_shape=(32, 32, 3),
    num_classes=0,
    dropout=0.2,
    augmentation=True,
    schedule="flow_matching",
    parameterization="simple_edm",
    second_time="s",
    time_scale=1000.0,
    sigma_data=0.5,
    min_time=0.006,
    max_time=0.994,
    k=15,
    min_gap=0.0,
    kernel="laplace",
    a=1,
    b=5,
    group_size=4,
    label_dropout=0.0,
    optimizer="RAdam",
    learning_rate=1e-4,
    beta_1=0.9,
    beta_2=0.999,
    epsilon=1e-8,
    ema_momentum=0.9999,
    batch_size=4096,
    iterations=400_000,
    sampler="pushforward",
    time_grid=(1.4,),
    guidance_scale=None,
    guidance_interval=None,
    fid=((1, 3.20), (2, 1.98)),
)
_IMAGENET = replace(
    _CIFAR10,
    dataset="ImageNet 256x256, latents of the Stable Diffusion autoencoder",
    backbone="DiT",
    image_shape=(32, 32, 4),
    num_classes=1000,
    dropout=0.0,
    augmentation=False,
    parameterization="euler_fm",
    min_time=0.0,
    k=12,
    b=4,
    label_dropout=0.1,
    optimizer="AdamW",
    iterations=1_200_000,
    time_grid="uniform",
    guidance_scale=1.5,
)
RECIPES = {
    "cifar10": _CIFAR10,
    **{
        f"imagenet256_dit_{size}_2": replace(
            _IMAGENET, preset=f"dit_{size}_2", fid=((8, fid),)
        )
        for size, fid in (("s", 20.36), ("b", 9.69), ("l", 2.80), ("xl", 2.13))
    },
    "imagenet256_dit_xl_2_stride": replace(
        _IMAGENET,
        preset="dit_xl_2",
        second_time="stride",
        min_gap=1e-4,
        a=2,
        fid=((1, 8.05), (2, 3.99), (4, 2.51), (8, 1.99), (16, 1.90)),
    ),
}
"""The published experiments: {name: `Recipe`}."""

SMALL_BUDGET: Mapping[str, Any] = {
    "time_mapping": EtaDecrement(k=12, min_gap=0.005),
    "second_time": "stride",
    "time_scale": 1.0,
    "times": "logit_normal",
    "flow_matching_share": 0.25,
}
"""Arguments of `IMM` that suit minutes of training: `IMM(backbone, **SMALL_BUDGET)`.

Measured on digits and Fashion-MNIST: benchmarks/RESULTS.md.
"""


def names() -> list[str]:
    """Names of the recipes.

    Returns:
        List of strings.

    Example:

    ```python
    keras_imm.recipes.names()  # ["cifar10", "imagenet256_dit_s_2", ...]
    ```
    """
    return list(RECIPES)


def get(name: str, **overrides: Any) -> Recipe:
    """A recipe by name, with some of its values replaced.

    Args:
        name: One of `names()`.
        **overrides: Attributes of `Recipe`.

    Returns:
        A `Recipe`.

    Raises:
        ValueError: If the name or the name of an override is unknown; the message
            lists the known ones.

    Example:

    ```python
    recipe = keras_imm.recipes.get("cifar10")
    dataset = dataset.batch(recipe.batch_size, drop_remainder=True)
    ```
    """
    if not isinstance(name, str) or name not in RECIPES:
        raise ValueError(
            f"`name` must be one of {', '.join(RECIPES)}. Received: name={name!r}"
        )
    known = [field.name for field in fields(Recipe)]
    for override in overrides:
        if override not in known:
            raise ValueError(
                f"A recipe has no {override!r}; it has {', '.join(known)}. "
                f"Received: {override}={overrides[override]!r}"
            )
    return replace(RECIPES[name], **overrides)


def build(
    name: str,
    *,
    dtype: Any = None,
    accumulation_steps: int = 1,
    seed: int = 0,
    network: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> IMM:
    """Makes the compiled model of a recipe, with new weights.

    Args:
        name: One of `names()`.
        dtype: Dtype policy of the network, such as "mixed_float16", which was used for
            the stride recipe. Default: Keras's global policy.
        accumulation_steps: Parts that a batch is split into, whose gradients are
            averaged.
        seed: Integer that starts the model's random streams.
        network: Arguments of the backbone that win over those of the preset and of
            the recipe, such as `{"depth": 2}`, for trials.
        **overrides: Attributes of `Recipe` that replace its values, such as
            `learning_rate` or `image_shape`. Those of data and sampling
            (`batch_size`, `iterations`, `sampler`, `time_grid`, `guidance_scale`,
            `guidance_interval`, `dataset`, `fid`) change nothing in the model.

    Returns:
        A compiled `IMM`.

    Raises:
        ValueError: If a name is unknown, or a value out of its range.

    Example:

    ```python
    model = keras_imm.recipes.build("imagenet256_dit_xl_2_stride")
    model.fit(dataset)  # batches of 4,096 latents and labels
    ```

    Reference:
        - [Zhou et al., 2025](https://arxiv.org/abs/2503.07565), Table 5
    """
    recipe = get(name, **overrides)
    check_choice("backbone", recipe.backbone, tuple(_BACKBONES))
    check_choice("optimizer", recipe.optimizer, tuple(_OPTIMIZERS))
    options = {"augmentation_dim": 9} if recipe.augmentation else {}
    backbone = _BACKBONES[recipe.backbone].from_preset(
        recipe.preset,
        **{
            "image_shape": recipe.image_shape,
            "num_classes": recipe.num_classes,
            "dropout": recipe.dropout,
            "seed": seed,
            "dtype": dtype,
            **options,
            **(network or {}),
        },
    )
    model = IMM(
        backbone,
        schedule=recipe.schedule,
        parameterization=recipe.parameterization,
        time_mapping=EtaDecrement(k=recipe.k, min_gap=recipe.min_gap),
        kernel=recipe.kernel,
        weighting=ELBO(a=recipe.a, b=recipe.b),
        second_time=recipe.second_time,
        time_scale=recipe.time_scale,
        group_size=recipe.group_size,
        accumulation_steps=accumulation_steps,
        sigma_data=recipe.sigma_data,
        min_time=recipe.min_time,
        max_time=recipe.max_time,
        label_dropout=recipe.label_dropout,
        seed=seed,
        augmentation=EDMAugmentation(seed=seed) if recipe.augmentation else None,
    )
    decay = {"weight_decay": 0.0} if recipe.optimizer == "AdamW" else {}
    model.compile(
        _OPTIMIZERS[recipe.optimizer](
            recipe.learning_rate,
            beta_1=recipe.beta_1,
            beta_2=recipe.beta_2,
            epsilon=recipe.epsilon,
            use_ema=True,
            ema_momentum=recipe.ema_momentum,
            **decay,
        )
    )
    return model


def describe(name: str, **overrides: Any) -> str:
    """Prints a recipe as a table.

    Args:
        name: One of `names()`.
        **overrides: Attributes of `Recipe` that replace its values.

    Returns:
        The table, as it was printed.

    Raises:
        ValueError: As `get`.

    Example:

    ```python
    keras_imm.recipes.describe("cifar10")
    ```
    """
    recipe = get(name, **overrides)
    rows = [
        (field.name, _shown(getattr(recipe, field.name))) for field in fields(recipe)
    ]
    rows[-1] = (
        "FID (published)",
        ", ".join(
            f"{fid:.2f} in {steps} step{'s' if steps > 1 else ''}"
            for steps, fid in recipe.fid
        ),
    )
    width = max(len(label) for label, _ in rows)
    table = "\n".join(
        [
            name,
            *(
                f"  {label.replace('_', ' '):<{width}}  {value}"
                for label, value in rows
            ),
        ]
    )
    print(table)
    return table


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, tuple):
        return f"({', '.join(str(element) for element in value)})"
    return str(value)
