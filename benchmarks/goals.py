"""The figures of benchmarks/gpu.sh beside their goals, which are for an H100.

python benchmarks/goals.py runs/gpu
"""

import json
import pathlib
import sys

COLUMNS = (
    ("ms / step", "step", "median_ms", ".1f"),
    ("images / s", "step", "images_per_second", ".0f"),
    ("utilisation", "step", "utilisation", ".1%"),
    ("peak GiB", "step", "peak_gib", ".1f"),
    ("predicted GiB", "step", "predicted_gib", ".1f"),
    ("attention", "kernels", "attention_share", ".1%"),
    ("optimizer", "kernels", "optimizer_share", ".1%"),
    ("loss ms", "loss", "loss_ms", ".2f"),
    ("1 step ms", "generate", "1_steps_ms", ".1f"),
    ("8 steps ms", "generate", "8_steps_ms", ".1f"),
    ("by hand ms", "by_hand", "median_ms", ".1f"),
)


def value(results, stage, name):
    return results.get(stage, {}).get(name)


def goals(results):
    """(what, figure, bound, whether it is met) of one file."""
    step = value(results, "step", "median_ms")
    if results["model"] == "dit_xl_2":
        share = value(results, "step", "utilisation")
        yield "utilisation at least 45%", share, 0.45, lambda a, b: a >= b
        share = value(results, "kernels", "optimizer_share")
        yield "optimizer and averages at most 4%", share, 0.04, lambda a, b: a <= b
    alone = value(results, "loss", "loss_ms")
    share = alone / step if alone and step else None
    yield "loss without the network at most 1%", share, 0.01, lambda a, b: a <= b
    hand = value(results, "by_hand", "median_ms")
    if hand and step:
        ratio = step / hand
        yield "`fit` at most 1.0 x by hand", ratio, 1.0, lambda a, b: a <= b


def main(folder):
    files = sorted(pathlib.Path(folder).glob("*_*.json"))
    print("| | batch | " + " | ".join(name for name, *_ in COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    checked = []
    for path in files:
        results = json.loads(path.read_text())
        cells = [path.stem, str(results["batch_size"])]
        for _, stage, name, form in COLUMNS:
            found = value(results, stage, name)
            cells.append("" if found is None else format(found, form))
        print("| " + " | ".join(cells) + " |")
        checked += [(path.stem, *goal) for goal in goals(results)]
    print()
    for name, what, found, bound, is_met in checked:
        if found is None:
            print(f"- {name}: {what}: not measured")
        else:
            verdict = "met" if is_met(found, bound) else "NOT met"
            print(f"- {name}: {what}: {found:.3f}, {verdict}")


if __name__ == "__main__":
    main(sys.argv[1])
