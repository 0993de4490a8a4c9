"""Kills a training run at random moments and compares it with one that was not.

    KERAS_BACKEND=jax python benchmarks/kill_and_resume.py --kills=10

It trains `examples/cifar10.py --smoke`, or another --example, in a folder, undisturbed.
Then it does the same in another folder, kills the process by SIGKILL at `--kills`
random moments, every other one while a checkpoint is being written, starts the same
command again after each, and compares the last checkpoints bit by bit: weights,
averages, optimizer, random states and the losses of all epochs.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import h5py
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("kills", 10, "How often the run is killed.", lower_bound=1)
flags.DEFINE_integer("epochs", 24, "Epochs of three steps.", lower_bound=2)
flags.DEFINE_enum("example", "cifar10", ["cifar10", "imagenet"], "What is trained.")
flags.DEFINE_integer("kill_seed", 0, "Of the random moments.")
flags.DEFINE_string("work_dir", None, "Folder for the runs. Default: a temporary one.")

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"
IDLE_LIMIT = 300.0


def command(example, out, epochs):
    return [
        *(sys.executable, str(EXAMPLES / f"{example}.py"), "--smoke", f"--out={out}"),
        *(f"--iterations={3 * epochs}", "--pictures_every=1000"),
    ]


def start(arguments, log):
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    return subprocess.Popen(
        arguments, stdout=log, stderr=subprocess.STDOUT, env=environment
    )


def checkpoints(out):
    return sorted(pathlib.Path(out, "checkpoints").glob("step-*"))


def wait_until(condition, process):
    """Whether the condition came true while the process was running."""
    limit = time.monotonic() + IDLE_LIMIT
    while process.poll() is None and time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.001)
    return False


def kill_at_random(process, out, moments, while_writing):
    """Kills after a random number of further epochs; returns False if it ended."""
    folder = pathlib.Path(out, "checkpoints")
    done = len(checkpoints(out)) and checkpoints(out)[-1].name
    if not wait_until(
        lambda: checkpoints(out) and checkpoints(out)[-1].name != done, process
    ):
        return False
    time.sleep(moments.uniform(0.0, 0.5))
    if while_writing and not wait_until(
        lambda: any(folder.glob(".unfinished-step-*")), process
    ):
        return False
    process.send_signal(signal.SIGKILL)
    process.wait()
    return True


def contents(out):
    """The arrays and the losses of the last checkpoint."""
    folder = checkpoints(out)[-1]
    arrays = {}
    with h5py.File(folder / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: (
                arrays.update({name: item[()].tobytes()})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    state = json.loads((folder / "state.json").read_text())
    losses = [entry["loss"] for entry in state["logs"]]
    return arrays, state["step"], state["dataset"], losses


def run(example, kills, epochs, folder, seed):
    """Runs both; returns how many kills there were, in what, and what differs."""
    moments = random.Random(seed)
    whole, killed = (pathlib.Path(folder, name) for name in ("whole", "killed"))
    log = open(pathlib.Path(folder, "log.txt"), "w")  # noqa: SIM115, two processes'
    if start(command(example, whole, epochs), log).wait() != 0:
        raise RuntimeError(f"The undisturbed run failed: see {log.name}")
    counts = {"kills": 0, "while writing": 0, "unfinished folders seen": 0}
    while True:
        process = start(command(example, killed, epochs), log)
        writing = counts["kills"] % 2 == 1
        if counts["kills"] == kills or not kill_at_random(
            process, killed, moments, writing
        ):
            break
        counts["kills"] += 1
        counts["while writing"] += writing
        left = pathlib.Path(killed, "checkpoints").glob(".unfinished-step-*")
        counts["unfinished folders seen"] += any(left)
    if process.wait() != 0:
        raise RuntimeError(f"The last run failed: see {log.name}")
    ours, theirs = contents(whole), contents(killed)
    names = sorted(ours[0].keys() | theirs[0].keys())
    different = [name for name in names if ours[0].get(name) != theirs[0].get(name)]
    different += [
        name
        for name, a, b in zip(
            ("step", "dataset", "losses"), ours[1:], theirs[1:], strict=True
        )
        if a != b
    ]
    return counts, len(names), len(ours[3]), different


def main(_):
    with tempfile.TemporaryDirectory() as temporary:
        folder = FLAGS.work_dir or temporary
        pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
        counts, arrays, losses, different = run(
            FLAGS.example, FLAGS.kills, FLAGS.epochs, folder, FLAGS.kill_seed
        )
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"compared: {arrays} arrays and {losses} losses")
    print(f"different: {', '.join(different) if different else 'nothing'}")
    if different or counts["kills"] < FLAGS.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
