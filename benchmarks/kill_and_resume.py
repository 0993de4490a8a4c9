"""Kills a training run at random moments and compares it with one that was not.

    KERAS_BACKEND=jax python benchmarks/kill_and_resume.py --kills=10
    KERAS_BACKEND=torch python benchmarks/kill_and_resume.py --processes=2
    python benchmarks/kill_and_resume.py --example=fashion_mnist --kills=20

It trains `examples/cifar10.py --smoke`, or another --example, in a folder, undisturbed.
--processes are of PyTorch, by torchrun, or JAX, and are killed together; Fashion-MNIST
is trained by one alone, on the real data.
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
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("kills", 10, "How often the run is killed.", lower_bound=1)
flags.DEFINE_integer("epochs", 24, "Epochs of three steps.", lower_bound=2)
flags.DEFINE_enum(
    "example", "cifar10", ["cifar10", "imagenet", "fashion_mnist"], "What is trained."
)
flags.DEFINE_integer("processes", 1, "Of a run.", lower_bound=1, upper_bound=2)
flags.DEFINE_integer("kill_seed", 0, "Of the random moments.")
flags.DEFINE_string("work_dir", None, "Folder for the runs. Default: a temporary one.")

EXAMPLES = pathlib.Path(__file__).resolve().parents[1] / "examples"
IDLE_LIMIT = 300.0


# A network that trains in moments, and measures that take none.
TINY = {
    **{"batch_size": 16, "hidden_size": 16, "depth": 1, "patch_size": 14},
    **{"dropout": 0.1, "num_samples": 80, "sampling_steps": 1, "evaluate_every": 10**6},
}


class Run:
    """The processes of one run, which live and die together."""

    def __init__(self, arguments, count, log):
        environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
        self._processes = [
            subprocess.Popen(
                [sys.executable, *given],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
            for given in self._given(arguments, count)
        ]

    @staticmethod
    def _given(arguments, count):
        if count == 1:
            return [arguments]
        port = free_port()
        if os.environ.get("KERAS_BACKEND") == "torch":
            torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={count}"]
            return [[*torchrun, f"--master_port={port}", *arguments]]
        address = f"--coordinator_address=127.0.0.1:{port}"
        return [
            [*arguments, address, f"--num_processes={count}", f"--process_id={i}"]
            for i in range(count)
        ]

    def is_running(self):
        return any(process.poll() is None for process in self._processes)

    def kill(self):
        """Sends SIGKILL to all of them, and to those that torchrun has started."""
        for process in self._processes:
            os.killpg(process.pid, signal.SIGKILL)
        self.wait()

    def wait(self):
        """Waits for the end; returns whether it was a good one."""
        codes = [process.wait() for process in self._processes]
        return not any(codes)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def command(example, out, epochs):
    script = [str(EXAMPLES / f"{example}.py"), f"--out={out}"]
    if example == "fashion_mnist":
        given = {**TINY, "steps": 3 * epochs, "steps_per_epoch": 3, "warmup_steps": 5}
        return [*script, *(f"--{name}={value}" for name, value in given.items())]
    return [
        *(*script, "--smoke"),
        *(f"--iterations={3 * epochs}", "--pictures_every=1000"),
    ]


def checkpoints(out):
    return sorted(pathlib.Path(out, "checkpoints").glob("epoch-*"))


def wait_until(condition, run):
    """Whether the condition came true while the run was going on."""
    limit = time.monotonic() + IDLE_LIMIT
    while run.is_running() and time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.001)
    return False


def kill_after_checkpoint(run, out, moments, start_up):
    newest = checkpoints(out)[-1:]
    if wait_until(lambda: checkpoints(out)[-1:] != newest, run):
        time.sleep(moments.uniform(0.0, 0.5))


def kill_while_writing(run, out, moments, start_up):
    folder = pathlib.Path(out, "checkpoints")
    wait_until(lambda: any(folder.glob(".unfinished-epoch-*")), run)


def kill_while_starting(run, out, moments, start_up):
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


def run_undisturbed(arguments, count, out, log):
    """Seconds to the first checkpoint."""
    began = time.monotonic()
    run = Run(arguments, count, log)
    wait_until(lambda: checkpoints(out), run)
    seconds = time.monotonic() - began
    if not run.wait():
        raise RuntimeError(f"The undisturbed run failed: see {log.name}")
    return seconds


def run(example, kills, epochs, folder, seed, processes=1):
    """Runs both; returns the kills of each kind, what was compared and what differs."""
    moments = random.Random(seed)
    whole, killed = (pathlib.Path(folder, name) for name in ("whole", "killed"))
    log = open(pathlib.Path(folder, "log.txt"), "w")  # noqa: SIM115, two runs'
    arguments = command(example, whole, epochs)
    start_up = run_undisturbed(arguments, processes, whole, log)
    arguments = command(example, killed, epochs)
    counts = dict.fromkeys(KINDS, 0)
    for kind in itertools.islice(itertools.cycle(KINDS), kills):
        going = Run(arguments, processes, log)
        KINDS[kind](going, killed, moments, start_up)
        if not going.is_running():
            break
        going.kill()
        counts[kind] += 1
    if not Run(arguments, processes, log).wait():
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
            *(FLAGS.example, FLAGS.kills, FLAGS.epochs, folder, FLAGS.kill_seed),
            processes=FLAGS.processes,
        )
    print("killed", ", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"compared: {arrays} arrays and {losses} losses")
    print(f"different: {', '.join(different) if different else 'nothing'}")
    if different or sum(counts.values()) < FLAGS.kills:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
