"""Draws what objectives.py measured: quality by steps of sampling, and samples.

    python benchmarks/draw_objectives.py --out=objectives.png
    python benchmarks/draw_objectives.py --samples=runs/samples/jax/0 --out=samples.png

Curves are of the Fréchet distance, one for each objective, medians over the seeds of
the runs of a budget. --samples is a folder that `objectives.py --samples` filled: a row
for each file of it, a sample of each class in one step and, from the same noise, in
four.
"""

import json
import pathlib

import numpy as np
from absl import app, flags
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

FLAGS = flags.FLAGS
flags.DEFINE_list("data", "digits,fashion_mnist", "Data sets, a panel for each.")
flags.DEFINE_list("budgets", "time,time", "The budget of each.")
flags.DEFINE_string("samples", "", "Folder of samples to draw instead of curves.")
flags.DEFINE_list("steps", "1,4", "Numbers of steps of the samples, a column for each.")
flags.DEFINE_string("out", "objectives.png", "The picture.")

FOLDER = pathlib.Path(__file__).resolve().parent / "data"
TITLES = {"digits": "digits, 8x8", "fashion_mnist": "Fashion-MNIST, 28x28"}


def curves_of(runs, budget):
    """By objective the step counts and the mean Fréchet distances, best first."""
    found = {}
    for run in runs:
        if not run["tuning"] and (run["budget"], run["backend"]) == (budget, "jax"):
            found.setdefault(run["name"], []).append(run["results"])
    curves = {
        name: (
            [row["steps"] for row in rows[0]],
            np.median([[row["frechet"] for row in each] for each in rows], axis=0),
        )
        for name, rows in found.items()
    }
    return dict(sorted(curves.items(), key=lambda curve: curve[1][1][0]))


def draw_curves(path):
    figure = Figure(figsize=(5 * len(FLAGS.data), 4.8), layout="constrained")
    panels = figure.subplots(1, len(FLAGS.data), squeeze=False)[0]
    styles, colors = ("-", "--", ":"), [f"C{i}" for i in range(10)]
    looks = {}
    for axes, data, budget in zip(panels, FLAGS.data, FLAGS.budgets, strict=True):
        runs = json.loads((FOLDER / f"objectives_{data}.json").read_text())["runs"]
        for name, (steps, distances) in curves_of(runs, budget).items():
            number = len(looks)
            look = colors[number % 10], styles[number // 10]
            color, style = looks.setdefault(name, look)
            axes.plot(steps, distances, style, color=color, marker=".", label=name)
        axes.set(xscale="log", yscale="log", title=TITLES[data], xlabel="steps")
        axes.set_xticks(steps, [str(count) for count in steps])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    panels[0].set_ylabel("Fréchet distance")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=120)


def draw_samples(path):
    files = sorted(pathlib.Path(FLAGS.samples).glob("*.npz"))
    steps = [int(count) for count in FLAGS.steps]
    size = 4 * len(steps), 0.3 + 0.62 * len(files)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(files), len(steps), squeeze=False)
    for row, file in zip(panels, files, strict=True):
        kept = np.load(file)
        for axes, count in zip(row, steps, strict=True):
            (samples,) = kept["samples"][kept["steps"] == count].astype("float32")
            apart = np.pad(samples[..., 0], ((0, 0), (0, 0), (0, 1)), constant_values=1)
            axes.imshow(np.hstack(apart), "gray", vmin=-0.75, vmax=1)
            axes.set_axis_off()
        row[0].set_title(file.stem, fontsize=8, loc="left")
    for axes, count in zip(panels[0], steps, strict=True):
        title = "1 step" if count == 1 else f"{count} steps"
        axes.set_title(title, fontsize=8, loc="right")
    figure.savefig(path, dpi=120)


def main(_):
    draw = draw_samples if FLAGS.samples else draw_curves
    draw(FLAGS.out)
    print(FLAGS.out)


if __name__ == "__main__":
    app.run(main)
