"""The table and the picture of examples/evaluate.py."""

import numpy as np


def print_table(rows):
    names = [name for name in rows[0] if not name.endswith("_std")]
    widths = [max(len(name), 8) for name in names]
    print()
    print("  ".join(f"{n:>{w}}" for n, w in zip(names, widths, strict=True)))
    for row in rows:
        cells = (_cell(row[name]) for name in names)
        print("  ".join(f"{c:>{w}}" for c, w in zip(cells, widths, strict=True)))


def _cell(value):
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def draw_quality(path, rows, name):
    """The first metric against the steps, and against guidance where it varies."""
    from matplotlib.figure import Figure

    axes_of = {"steps": "guidance_scale"}
    if len({row["guidance_scale"] for row in rows}) > 1:
        axes_of["guidance_scale"] = "steps"
    figure = Figure(figsize=(4.5 * len(axes_of), 3.5), layout="constrained")
    panels = np.ravel(figure.subplots(1, len(axes_of)))
    for axes, (x, line) in zip(panels, axes_of.items(), strict=True):
        for value in dict.fromkeys(row[line] for row in rows):
            of_line = sorted((r for r in rows if r[line] == value), key=lambda r: r[x])
            axes.plot(
                [row[x] for row in of_line],
                [row[name] for row in of_line],
                marker="o",
                label=None if value is None else f"{line.split('_')[0]} {value:g}",
            )
        if x == "steps":
            axes.set_xscale("log", base=2)
            axes.set_xticks([row[x] for row in rows], [row[x] for row in rows])
        axes.set_xlabel(x.replace("_", " "))
        axes.set_ylabel(name.upper() if name == "fid" else "Fréchet distance")
        axes.grid(alpha=0.3)
        if any(row[line] is not None for row in rows):
            axes.legend()
    figure.savefig(path, dpi=150)
