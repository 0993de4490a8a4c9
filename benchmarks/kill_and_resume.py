"""Kills a training run at random moments and compares it with one that was not.

    KERAS_BACKEND=jax python benchmarks/kill_and_resume.py --kills=10

It trains `examples/cifar10.py --smoke`, or another --example, in a folder, undisturbed.
Then it does the same in another folder, kills the process by SIGKILL at `--kills`
random moments, starts the same command again after each, and compares the last
checkpoints bit by bit: weights, averages, optimizer, random states and the losses of
all epochs. The moments are, in turn: within half a second of a new checkpoint; while a
checkpoint is being written; anywhere in the time that the undisturbed run took to its
first checkpoint.
"""

import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
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
    return sorted(pathlib.Path(out, "checkpoints").glob("epoch-*"))


def wait_until(condition, process):
    """Whether the condition came true while the process was running."""
    limit = time.monotonic() + IDLE_LIMIT
    while process.poll() is None and time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.001)
    return False


def kill_after_checkpoint(process, out, moments, start_up):
    newest = checkpoints(out)[-1:]
    if wait_until(lambda: checkpoints(out)[-1:] != newest, process):
        time.sleep(moments.uniform(0.0, 0.5))


def kill_while_writing(process, out, moments, start_up):
    folder = pathlib.Path(out, "checkpoints")
    wait_until(lambda: any(folder.glob(".unfinished-epoch-*")), process)


def kill_while_starting(process, out, moments, start_up):
    time.sleep(moments.uniform(0.0, start_up))


KINDS = {
    "after a checkpoint": kill_after_checkpoint,
    "while writing": kill_while_writing,
    "while starting": kill_while_starting,
}


def contents(out):
    """The arrays and the losses of the last checkpoint."""
    folder = checkpoints(out)[-1]
    with np.load(folder / "training_state.npz") as file:
        arrays = {name: file[name].tobytes() for name in file.files}
    state = json.loads((folder / "state.json").read_text())
    losses = [entry["loss"] for entry in state["logs"]]
    return arrays, state["step"], state["dataset"], losses


def run_undisturbed(arguments, out, log):
    """Seconds to the first checkpoint."""
    began = time.monotonic()
    process = start(arguments, log)
    wait_until(lambda: checkpoints(out), process)
    seconds = time.monotonic() - began
    if process.wait() != 0:
        raise RuntimeError(f"The undisturbed run failed: see {log.name}")
    return seconds


def run(example, kills, epochs, folder, seed):
    """Runs both; returns the kills of each kind, what was compared and what differs."""
    moments = random.Random(seed)
    whole, killed = (pathlib.Path(folder, name) for name in ("whole", "killed"))
    log = open(pathlib.Path(folder, "log.txt"), "w")  # noqa: SIM115, two processes'
    start_up = run_undisturbed(command(example, whole, epochs), whole, log)
    counts = dict.fromkeys(KINDS, 0)
    for kind in itertools.islice(itertools.cycle(KINDS), kills):
        process = start(command(example, killed, epochs), log)
        KINDS[kind](process, killed, moments, start_up)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        counts[kind] += 1
    if start(command(example, killed, epochs), log).wait() != 0:
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
    print("killed", ", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"compared: {arrays} arrays and {losses} losses")
    print(f"different: {', '.join(different) if different else 'nothing'}")
    if different or sum(counts.values()) < FLAGS.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
