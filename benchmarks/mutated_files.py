"""Reads thousands of damaged files: what becomes of them, how fast, in what memory.

    KERAS_BACKEND=torch python benchmarks/mutated_files.py --count=2000

Files of each kind that the library reads are written, and one of them is damaged: one
to three places of it are changed, it is cut, or a part of it is repeated. Each is read
in a process of its own. It must be refused with a ValueError or an OSError, or be read;
within 10 s; without a process or a connection; and with at most twice the memory that
the undamaged file takes, and 64 MiB.
"""

import collections
import gzip
import json
import multiprocessing
import os
import pathlib
import platform
import struct
import sys
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from absl import app, flags

import keras_imm
from keras_imm.callbacks import training_state
from keras_imm.checkpoints import load_official
from keras_imm.datasets import LatentShards
from keras_imm.datasets.idx_files import read_idx
from keras_imm.latents import shard_files
from keras_imm.metrics import ReferenceStatistics

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_integer("count", 2000, "Damaged files in all.", lower_bound=1)
flags.DEFINE_integer("seed", 1, "Seed of the damage.", lower_bound=0)
flags.DEFINE_multi_string("kind", [], "A kind of those below. Default: all.")

LIMIT_S = 10.0
ALLOWANCE = 64 * 2**20
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.")


def small_model():
    backbone = keras_imm.backbones.DiT(
        (8, 8, 1), patch_size=2, hidden_size=32, depth=2, num_heads=2, num_classes=10
    )
    model = keras_imm.IMM(backbone)
    model.compile(keras.optimizers.Adam(1e-3, use_ema=True))
    return model


# -- Kinds of files: how they are written, and how they are read


def write_idx(folder):
    header = struct.pack(">HBBIII", 0, 8, 3, 200, 28, 28)
    images = np.random.default_rng(0).integers(0, 256, (200, 28, 28), "uint8")
    (folder / "images-idx3-ubyte").write_bytes(header + images.tobytes())


def write_gzip(folder):
    write_idx(folder)
    path = folder / "images-idx3-ubyte"
    (folder / "images-idx3-ubyte.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def write_statistics(folder):
    features = np.random.default_rng(0).standard_normal((300, 64))
    np.savez(
        folder / "statistics.npz",
        mu=features.mean(axis=0),
        sigma=np.cov(features, rowvar=False),
    )


def write_pickled_statistics(folder):
    import pickle

    features = np.random.default_rng(0).standard_normal((300, 64))
    content = {"mu": features.mean(axis=0), "sigma": np.cov(features, rowvar=False)}
    (folder / "statistics.pkl").write_bytes(pickle.dumps({"fid": content}))


def write_shards(folder):
    dtype = shard_files.record_dtype((4, 4, 8), "float16", False)
    shard_files.claim_folder(folder, {"source": "benchmark"})
    for number in range(2):
        records = np.zeros(50, dtype)
        records["index"] = np.arange(50)
        shard_files.write_shard(folder, number, records)
    shard_files.write_manifest(
        folder,
        2,
        {
            **{"moments_shape": [4, 4, 8], "dtype": "float16", "mirrored": False},
            **{"num_classes": 10, "class_names": None},
        },
    )


def read_shards(folder):
    shards = LatentShards(folder)
    shards.verify()
    return [shards[i] for i in range(0, len(shards), 7)]


def write_preset(folder):
    small_model().save_to_preset(folder / "preset")


def write_state(folder):
    training_state.save(folder / "state.npz", small_model())


def write_official(folder):
    golden = ROOT / "tests/data/golden/dit_euler_fm_stride.pkl"
    (folder / "model.pkl").write_bytes(golden.read_bytes())


def in_file(name, read):
    return lambda folder: read(folder / name)


KINDS = {
    "IDX": (write_idx, in_file("images-idx3-ubyte", lambda p: read_idx(p, (3,)).sum())),
    "IDX, gzip": (
        write_gzip,
        in_file("images-idx3-ubyte.gz", lambda p: read_idx(p, (3,)).sum()),
    ),
    "statistics, npz": (
        write_statistics,
        in_file("statistics.npz", ReferenceStatistics.load),
    ),
    "statistics, pickle": (
        write_pickled_statistics,
        in_file("statistics.pkl", ReferenceStatistics.load),
    ),
    "latents": (write_shards, read_shards),
    "preset": (write_preset, in_file("preset", keras_imm.FlowMapModel.from_preset)),
    "state of a run": (
        write_state,
        in_file("state.npz", lambda path: training_state.load(path, small_model())),
    ),
    "published checkpoint": (write_official, in_file("model.pkl", load_official)),
}


def damaged(content, rng):
    """The bytes of a file with something wrong."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        kind, place = rng.integers(6), int(rng.integers(len(content) or 1))
        length = int(rng.integers(1, 65))
        if rng.random() < 0.5:  # headers and the ends of archives say most
            place = min(place, 512) if rng.random() < 0.5 else -min(place, 512) - 1
            place %= len(content) or 1
        if kind == 0:
            content[place : place + 1] = bytes([rng.integers(256)])
        elif kind == 1:
            content[place : place + 1] = bytes([1 << rng.integers(8)])
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            del content[place : place + length]
        elif kind == 4:
            content[place:place] = content[place : place + length]
        else:
            content[place : place + length] = rng.bytes(length)
    return bytes(content)


def measured(read, folder, connection):
    """What becomes of the files in a folder, of this process, sent to another."""
    events = []

    def watch(event, _):
        if event.startswith(FORBIDDEN):
            events.append(event)

    sys.addaudithook(watch)
    before = memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read(folder)
        outcome = "read"
    except (ValueError, OSError):
        outcome = "refused"
    except BaseException as error:
        outcome = f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.perf_counter() - start
    taken = max(0, memory("VmHWM") - before)
    connection.send((outcome, seconds, taken, sorted(set(events))))


def memory(name):
    """Bytes, as the system counts this process's."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no {name}")


def one(read, folder):
    """Outcome, seconds, bytes and forbidden events of reading in a forked process."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=measured, args=(read, folder, theirs))
    process.start()
    theirs.close()
    try:
        result = ours.recv() if ours.poll(LIMIT_S) else None
    except EOFError:
        result = ("died", 0.0, 0, [])
    process.kill() if result is None else None
    process.join()
    return result or ("no end", LIMIT_S, 0, [])


def run(name, count, seed):
    """A row of the table, and what went wrong."""
    write, read = KINDS[name]
    rng = np.random.default_rng(seed)
    wrong, outcomes = [], collections.Counter()
    slowest = most = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        write(folder)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        contents = {path: path.read_bytes() for path in files}
        outcome, _, valid, _ = one(read, folder)
        if outcome != "read":
            raise RuntimeError(f"{name}: undamaged files are not read: {outcome}")
        for i in range(count):
            path = files[rng.integers(len(files))]
            content = damaged(contents[path], rng)
            path.write_bytes(content)
            outcome, seconds, taken, events = one(read, folder)
            path.write_bytes(contents[path])
            outcomes[outcome if outcome in ("read", "refused") else "wrong"] += 1
            slowest, most = max(slowest, seconds), max(most, taken)
            if outcome not in ("read", "refused") or events:
                wrong.append((name, i, path.name, outcome, events))
            if taken > 2 * valid + ALLOWANCE:
                wrong.append((name, i, path.name, f"{taken / 2**20:.0f} MiB", []))
    row = (
        f"| {name} | {count} | {outcomes['refused']} | {outcomes['read']} "
        f"| {slowest:.2f} | {valid / 2**20:.1f} | {most / 2**20:.1f} | {len(wrong)} |"
    )
    return row, wrong


def main(_):
    unknown = set(FLAGS.kind) - KINDS.keys()
    if unknown:
        raise app.UsageError(f"--kind must be one of {', '.join(KINDS)}.")
    small_model()  # what the first model imports is no part of a file's memory
    names = FLAGS.kind or list(KINDS)
    machine = platform.processor() or platform.machine()
    print(f"{keras.backend.backend()}; {machine}, {os.cpu_count()} cores.\n")
    print(
        "| files | number | refused | read | slowest, s | undamaged, MiB | most, MiB "
        "| wrong |"
    )
    print("|---" * 8 + "|", flush=True)
    found = []
    for name in names:
        row, wrong = run(name, -(-FLAGS.count // len(names)), FLAGS.seed)
        print(row, flush=True)
        found += wrong
    for each in found:
        print(json.dumps(each), flush=True)
    sys.exit(bool(found))


if __name__ == "__main__":
    app.run(main)
