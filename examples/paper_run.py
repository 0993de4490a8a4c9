"""What examples/cifar10.py and examples/imagenet.py share: a recipe, trained.

An example says where its data are and what its samples look like; everything else, from
the devices to the last table, is here.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# PyTorch alone counts physical cores; give each framework what the machine has.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import ast
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from absl import app, flags

import keras_imm
from keras_imm import callbacks, devices, distribution, memory, recipes
from keras_imm.files.atomic import atomic_directory
from keras_imm.files.paths import user_path

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "out",
    None,
    "Folder for checkpoints, pictures, logs and the model. If it holds a checkpoint "
    "of the same run, the run continues.",
)
flags.DEFINE_multi_string(
    "set", [], "Value of the recipe to replace, such as --set=learning_rate=2e-4."
)
flags.DEFINE_string(
    "network", "{}", "JSON: arguments of the network to replace, for trials."
)
flags.DEFINE_integer("iterations", None, "Training steps. Default: the recipe's.")
flags.DEFINE_integer("batch_size", None, "Images per step. Default: the recipe's.")
flags.DEFINE_integer(
    "accumulation_steps",
    None,
    "Parts that a batch is computed in, one after the other. Default: those of the run "
    "that continues, else as few as fit into the memory of one process's device, or 1 "
    "where it is not known.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "steps_per_epoch",
    1000,
    "Steps between checkpoints, log entries and pictures.",
    lower_bound=1,
)
flags.DEFINE_integer(
    "log_every", 100, "Steps between entries of the loss.", lower_bound=1
)
flags.DEFINE_integer(
    "pictures_every", 5, "Epochs between pictures and measurements.", lower_bound=1
)
flags.DEFINE_string(
    "dtype", None, "Dtype policy, such as mixed_bfloat16. Default: float32."
)
flags.DEFINE_integer("seed", 0, "Of weights, data order, noise and times.")
flags.DEFINE_integer(
    "num_workers", 0, "Processes that read data; 0 reads in threads.", lower_bound=0
)
flags.DEFINE_enum(
    "on_corrupt", "raise", ["raise", "skip"], "What a record that cannot be read does."
)
flags.DEFINE_integer(
    "num_samples", 2048, "Images per measurement of quality.", lower_bound=2
)
flags.DEFINE_integer(
    "sampling_batch", 256, "Images in one pass when sampling.", lower_bound=1
)
flags.DEFINE_bool(
    "smoke", False, "A tiny network on data made up on the spot: does it run?"
)
flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0, for several processes."
)
flags.DEFINE_integer("num_processes", None, "Number of processes.")
flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")

SMOKE = {
    "batch_size": 8,
    "iterations": 6,
    "steps_per_epoch": 3,
    "log_every": 2,
    "pictures_every": 1,
    "num_samples": 16,
    "sampling_batch": 16,
}


@dataclasses.dataclass
class Task:
    """What one example adds.

    Attributes:
        recipe: Name of the recipe.
        load: `load(recipe, batch_size, held_out=False, **options)` returns the
            `keras_imm.datasets.ImageDataset` of the training data, or of the data
            that samples are compared with, in the model's range.
        to_uint8: Turns samples into pictures.
        smoke_network: Arguments of the network for --smoke.
        smoke_image_shape: Shape of its data.
        smoke_num_classes: Classes of its data.
    """

    recipe: str
    load: Callable[..., Any]
    to_uint8: Callable[[np.ndarray], np.ndarray]
    smoke_network: dict[str, Any]
    smoke_image_shape: tuple[int, int, int]
    smoke_num_classes: int = 0

    def overrides(self) -> dict[str, Any]:
        """The values of the recipe that the flags replace."""
        values = {}
        if FLAGS.smoke:
            values["image_shape"] = self.smoke_image_shape
            values["num_classes"] = self.smoke_num_classes
        for name in ("batch_size", "iterations"):
            if FLAGS[name].value is not None:
                values[name] = FLAGS[name].value
        for text in FLAGS.set:
            name, _, value = text.partition("=")
            try:
                values[name] = ast.literal_eval(value)
            except (SyntaxError, ValueError):
                values[name] = value
        return values

    def network(self) -> dict[str, Any]:
        """The arguments of the network that the flags replace."""
        return (self.smoke_network if FLAGS.smoke else {}) | json.loads(FLAGS.network)


def start() -> distribution.Strategy:
    """Starts the devices; with --smoke, gives flags that were not set small values."""
    if FLAGS.smoke:
        for name, value in SMOKE.items():
            if not FLAGS[name].present:
                FLAGS[name].value = value
    return distribution.initialize(
        FLAGS.coordinator_address, FLAGS.num_processes, FLAGS.process_id
    )


def out_folder() -> pathlib.Path:
    """--out, or a folder named after the recipe."""
    return user_path(FLAGS.out or f"runs/{FLAGS.recipe}{'_smoke' * FLAGS.smoke}")


def smoke_data(make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The folder of data for --smoke, in --out; made once."""
    folder = out_folder() / "smoke_data"
    if not folder.exists() and distribution.is_chief():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_directory(folder) as unfinished:
            make(unfinished)
    distribution.barrier()
    return folder


def train(task: Task, strategy: distribution.Strategy) -> None:
    """Trains the recipe of a task, or goes on with it, and measures it at the end."""
    overrides, network = task.overrides(), task.network()
    recipe = recipes.get(task.recipe, **overrides)
    steps_per_epoch = min(FLAGS.steps_per_epoch, recipe.iterations)
    if recipe.iterations % steps_per_epoch:
        raise app.UsageError("--iterations must be a multiple of --steps_per_epoch.")
    keras.utils.set_random_seed(FLAGS.seed)
    dataset = task.load(
        recipe,
        recipe.batch_size,
        seed=FLAGS.seed,
        steps_per_epoch=steps_per_epoch,
        num_workers=FLAGS.num_workers,
        on_corrupt=FLAGS.on_corrupt,
        process_index=distribution.process_index(),
        process_count=distribution.process_count(),
    )
    with strategy.scope():
        model = recipes.build(
            task.recipe,
            dtype=FLAGS.dtype,
            accumulation_steps=FLAGS.accumulation_steps or 1,
            seed=FLAGS.seed,
            network=network,
            **overrides,
        )
    out = out_folder()
    checkpoint = callbacks.TrainingCheckpoint(
        out / "checkpoints",
        dataset,
        settings={
            "recipe": task.recipe,
            "set": {k: str(v) for k, v in overrides.items() if k != "iterations"},
            "network": network,
            "dtype": FLAGS.dtype,
        },
    )
    if FLAGS.accumulation_steps is None:
        choose_parts(model, recipe.batch_size, checkpoint)
    chief = distribution.is_chief()
    if chief:
        recipes.describe(task.recipe, **overrides)
        print(f"{model.backbone.count_params():,} parameters; results in {out}")
        print(precision_advice(), end="")
    quality = Quality(task, recipe, model.accumulation_steps)
    model.fit(
        dataset,
        epochs=recipe.iterations // steps_per_epoch,
        verbose=2 if chief else 0,
        callbacks=[
            *watching(task, recipe, quality, out),
            callbacks.TerminateOnNonFinite(out, dataset),
            checkpoint,
        ],
    )
    if chief:
        with distribution.alone():
            model.save(out / "model.keras")
    distribution.barrier()
    report(task, model, recipe, quality, checkpoint.logs)


def choose_parts(
    model: keras_imm.IMM, batch_size: int, checkpoint: callbacks.TrainingCheckpoint
) -> None:
    """Computes a batch in the parts of the run that continues, or in as few as fit.

    Every part draws its own dropout masks and sums are rounded otherwise: a run that
    continues on another device must not choose anew.
    """
    steps = checkpoint.saved_settings().get("model.accumulation_steps")
    if steps is None:
        fit_into_memory(model, batch_size)
    else:
        model.accumulation_steps = steps


def fit_into_memory(model: keras_imm.IMM, batch_size: int) -> None:
    """Computes the batch in as few parts as fit into the device, and says so."""
    available = devices.memory_bytes()
    if available is None or distribution.process_count() > 1:
        return  # several processes must agree on a number
    batch_size = batch_size // distribution.num_devices()
    rows = model.objective.rows_together
    steps = memory.accumulation_that_fits(model.backbone, batch_size, available, rows)
    model.accumulation_steps = steps
    needed = memory.training_memory(model.backbone, batch_size // steps).total
    if distribution.is_chief():
        print(
            f"{batch_size} images on a device in {steps} parts of "
            f"{batch_size // steps}: {needed / 2**30:.1f} GiB expected of "
            f"{available / 2**30:.1f} (--accumulation_steps sets another number)"
        )


def precision_advice() -> str:
    """What to say where the device multiplies in half precision much faster."""
    half, full = (devices.peak_flops(dtype) for dtype in ("bfloat16", "float32"))
    if FLAGS.dtype is not None or not half or (full and half < 1.5 * full):
        return ""
    return (
        f"{devices.device_kind()} multiplies faster in half precision: try "
        "--dtype=mixed_bfloat16\n"
    )


def watching(task: "Task", recipe: Any, quality: "Quality", out: pathlib.Path) -> list:
    """Speed, learning rate, pictures and quality, for TensorBoard and the console."""
    board = callbacks.TensorBoard(out / "logs", every_n_steps=FLAGS.log_every)
    columns = min(16, len(quality.images))
    labels = None if quality.labels is None else quality.labels[:columns]
    sampling = {"freq": FLAGS.pictures_every, "tensorboard": board}
    sampling |= {"num_steps": sampling_steps(recipe)}
    return [
        callbacks.LearningRate(),
        callbacks.Throughput(recipe.batch_size),
        callbacks.SampleGrid(
            out / "samples_{step:07d}.png",
            task.to_uint8,
            **quality.arguments
            | sampling
            | {
                "labels": labels,
                "num_samples": None if recipe.num_classes else columns,
            },
        ),
        callbacks.QualityMonitor(
            quality.images,
            features=pooled_pixels,
            name="frechet_pooled",
            **quality.arguments | sampling,
        ),
        board,
    ]


def pooled_pixels(images: np.ndarray) -> np.ndarray:
    """Images averaged over blocks to 8x8: few enough numbers for a covariance."""
    batch, height, width, channels = images.shape
    rows, columns = min(8, height), min(8, width)
    whole = images[:, : height // rows * rows, : width // columns * columns]
    blocks = whole.reshape(
        batch, rows, height // rows, columns, width // columns, channels
    )
    return blocks.mean((2, 4), dtype="float64").reshape(batch, -1)


class Quality:
    """Samples against data, by the Fréchet distance of their pooled pixels."""

    def __init__(self, task: "Task", recipe: Any, accumulation_steps: int):
        def load(batch_size):
            return task.load(recipe, batch_size, held_out=True, shuffle=False)

        count = min(FLAGS.num_samples, load(1).num_records)
        batch = load(count)[0]
        self.images, labels = batch if isinstance(batch, tuple) else (batch, None)
        unit = recipe.group_size * distribution.num_devices()
        whole = min(recipe.batch_size // accumulation_steps, count)
        self.loss_batch = whole // unit * unit
        if not self.loss_batch:
            raise app.UsageError(
                f"--held_out must have {unit} images or more. It has {count}."
            )
        self.labels = labels if recipe.num_classes else None
        self.num_samples = None if self.labels is not None else count
        self.arguments = {
            "labels": self.labels,
            "num_samples": self.num_samples,
            "guidance_scale": recipe.guidance_scale,
            "sampler": recipe.sampler,
            "batch_size": FLAGS.sampling_batch,
        }

    def frechet(self, samples: np.ndarray) -> float:
        """Fréchet distance between the pooled pixels of samples and of data."""
        return keras_imm.metrics.frechet_distance(
            pooled_pixels(samples), pooled_pixels(self.images)
        )


def report(task: Task, model: Any, recipe: Any, quality: "Quality", logs: list) -> None:
    """Measures the model in all processes; the first prints and writes results.json."""
    rows = []
    for num_steps in sampling_steps(recipe):
        samples = model.generate(
            labels=quality.labels,
            num_samples=quality.num_samples,
            batch_size=FLAGS.sampling_batch,
            seed=FLAGS.seed,
            verbose=0,
            **recipe.sampling_plan(num_steps).arguments(),
        )
        rows.append({"steps": num_steps, "frechet_pooled": quality.frechet(samples)})
    results = {
        "recipe": task.recipe,
        "settings": {name: str(value) for name, value in task.overrides().items()},
        "backend": keras.backend.backend(),
        "keras_imm": keras_imm.__version__,
        "held_out_loss": held_out_loss(task, model, recipe, quality),
        "num_samples": len(quality.images),
        "samples": rows,
        "epochs": logs,
    }
    if not distribution.is_chief():
        return
    print(f"\n{'steps':>5}  {'Fréchet, pooled pixels':>22}")
    for row in rows:
        print(f"{row['steps']:>5}  {row['frechet_pooled']:>22.4f}")
    text = json.dumps(results, indent=2) + "\n"
    (out_folder() / "results.json").write_text(text)


def held_out_loss(task: Task, model: Any, recipe: Any, quality: "Quality") -> float:
    """The loss on the data that samples are compared with."""
    data = task.load(
        recipe,
        quality.loss_batch,
        held_out=True,
        shuffle=False,
        process_index=distribution.process_index(),
        process_count=distribution.process_count(),
    )
    return float(model.evaluate(data, verbose=0))


def sampling_steps(recipe: Any) -> list[int]:
    """The numbers of steps that the paper reports for a recipe, at most 8."""
    return [steps for steps, _ in recipe.fid if steps <= 8]
