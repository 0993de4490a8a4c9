"""What the examples that train on pictures share: rates, speed, tables and drawings."""

import json
import os
import platform
import shlex
import sys
import time

import keras
import numpy as np
from matplotlib.figure import Figure

import keras_imm


def cosine_rate(highest, steps, warmup_steps):
    """Rises for `warmup_steps`, then falls to 0 at the last step (cosine)."""
    warmup = min(warmup_steps, steps - 1)
    return keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else highest,
        steps - warmup,
        warmup_target=highest if warmup else None,
        warmup_steps=warmup,
    )


def averaging(optimizer, learning_rate, ema_momentum):
    """An optimizer of a class of Adam's kind, which averages the weights."""
    return optimizer(
        learning_rate, epsilon=1e-8, use_ema=True, ema_momentum=ema_momentum
    )


class StepTimer(keras.callbacks.Callback):
    """Seconds per training step, from all epochs but the first, which compiles.

    Stands first among the callbacks, so that what the others do is not counted. Adds
    the seconds of each epoch to its logs.
    """

    def __init__(self, clock=time.perf_counter):
        super().__init__()
        self.clock = clock

    def on_train_begin(self, logs=None):
        self.epochs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = self.clock()

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.clock() - self.start)
        if logs is not None:
            logs["seconds"] = self.epochs[-1]

    def seconds_per_step(self, steps_per_epoch):
        return float(np.mean(self.epochs[1:] or self.epochs)) / steps_per_epoch


class Generator:
    """Samples of one noise, whatever the number of steps: `generate(labels, steps)`.

    The noise is that of `keras_imm.callbacks.SampleMetrics` with the same seed.
    """

    def __init__(self, model, image_shape, seed, batch_size, guidance_scale=None):
        self.model = model
        self.image_shape = image_shape
        self.seed = seed
        self.batch_size = batch_size
        self.guidance_scale = guidance_scale

    def __call__(self, labels, num_steps):
        rng = np.random.default_rng(self.seed)
        return self.model.generate(
            labels,
            num_steps=num_steps,
            guidance_scale=self.guidance_scale,
            noise=rng.standard_normal((len(labels), *self.image_shape), "float32"),
            batch_size=self.batch_size,
            verbose=0,
        )


def measure(generate, labels, step_counts, score, first_batch=1000):
    """One row of the table per number of steps.

    Args:
        generate: `generate(labels, num_steps)` returns samples.
        labels: What is asked for.
        step_counts: The numbers of steps.
        score: `score(samples, labels)` returns numbers by name.
        first_batch: Samples of the first call, which compiles and is not timed.
    """
    generate(labels[:first_batch], 1)
    rows = []
    for num_steps in step_counts:
        start = time.perf_counter()
        samples = generate(labels, num_steps)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "steps": num_steps,
                **score(samples, labels),
                "seconds_per_1000_images": 1000 * seconds / len(labels),
            }
        )
    return rows


def print_table(rows, columns):
    """Prints `columns`, from the name in a row to (title, digits after the point)."""
    titles = {name: title for name, (title, _) in columns.items()}
    widths = {name: max(8, len(title)) for name, title in titles.items()}
    header = "  ".join(f"{titles[name]:>{widths[name]}}" for name in columns)
    print(f"\n{'steps':>5}  {header}")
    for row in rows:
        cells = (
            f"{row[name]:>{widths[name]}.{digits}f}"
            for name, (_, digits) in columns.items()
        )
        print(f"{row['steps']:>5}  {'  '.join(cells)}")
    print()


def environment(**versions):
    """Backend, versions, cores and command of this process."""
    backend = keras.backend.backend()
    return {
        "backend": backend,
        "versions": {
            "python": platform.python_version(),
            "keras_imm": keras_imm.__version__,
            "keras": keras.__version__,
            backend: sys.modules[backend].__version__,
            "numpy": np.__version__,
            **versions,
        },
        "cpus": os.cpu_count(),
        "command": shlex.join(["python", *sys.argv]),
    }


def flags_of(flag_values, module):
    """The values of the flags that a module defines or adopts."""
    return {
        flag.name: flag.value
        for flag in flag_values.get_key_flags_for_module(sys.modules[module])
    }


def write_json(path, content):
    path.write_text(json.dumps(content, indent=2) + "\n")


def steps_title(num_steps):
    return f"{num_steps} step{'s' if num_steps > 1 else ''}"


def sample_blocks(images, labels, generate, step_counts, num_classes, columns=8):
    """`columns` real images of each class, and samples for each number of steps."""
    wanted = np.repeat(np.arange(num_classes, dtype="int32"), columns)
    real = [images[labels == c][:columns] for c in range(num_classes)]
    blocks = {"real": np.concatenate(real)}
    return blocks | {steps_title(n): generate(wanted, n) for n in step_counts}


def draw_blocks(path, blocks, limits, columns=8, class_names=None, across=None):
    """Blocks of pictures, one row for each class.

    Args:
        path: File of the picture.
        blocks: From title to images (classes * columns, H, W, 1).
        limits: What is white and what is black.
        columns: Images in a row of a block.
        class_names: What stands beside the rows.
        across: Blocks side by side. Default: all.
    """
    across = across or len(blocks)
    down = -(-len(blocks) // across)
    width = 2.4 * columns / 8
    rows = len(next(iter(blocks.values()))) / columns
    figure = Figure(
        figsize=(width * across, (0.4 + width * rows / columns) * down),
        layout="constrained",
    )
    all_axes = np.ravel(figure.subplots(down, across))[: len(blocks)]
    for axes, (title, block) in zip(all_axes, blocks.items(), strict=True):
        height, width = block.shape[1:3]
        tiles = np.pad(
            block[..., 0].reshape(-1, columns, height, width),
            ((0, 0), (0, 0), (1, 1), (1, 1)),
            constant_values=limits[0],
        )
        rows, _, height, width = tiles.shape
        canvas = tiles.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
        axes.imshow(canvas, cmap="gray_r", vmin=limits[0], vmax=limits[1])
        axes.set_title(title)
        axes.set_axis_off()
        if class_names and axes in all_axes[::across]:
            axes.set_axis_on()
            axes.set_yticks(height * (np.arange(rows) + 0.5), class_names, fontsize=7)
            axes.set_xticks([])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=150)


def draw_curves(path, panels, last_step):
    """Panels side by side: (title, steps, values, whether the axis is logarithmic)."""
    figure = Figure(figsize=(3 * len(panels), 3), layout="constrained")
    for axes, (title, steps, values, logarithmic) in zip(
        np.ravel(figure.subplots(1, len(panels))), panels, strict=True
    ):
        axes.plot(steps, values, marker="." if logarithmic is not None else None)
        if logarithmic:
            axes.set_yscale("log")
        axes.set_ylabel(title)
        axes.set_xlabel("training step")
        axes.set_xlim(0, last_step)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
