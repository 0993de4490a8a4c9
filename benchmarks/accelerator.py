"""One network on one device, the most important figures first.

    KERAS_BACKEND=jax python benchmarks/accelerator.py --model=dit_s_2 --batch_size=256

Stages: `step` (training), `kernels` (their shares of a step), `loss` (a step without
its network), `generate`, `by_hand` (the loop written for the framework); if asked for,
`cuda_graphs` (PyTorch's compiled steps as CUDA graphs and not). Each prints its figures
and writes them to `--out` before the next one starts, and an error in one does not stop
the others: a run that is cut has what was done until then. Every time ends when the
device is done and results are read. benchmarks/gpu.sh runs it for all frameworks and
compares with the goals.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

import contextlib
import gc
import json
import pathlib
import re
import time
import traceback

import keras
import kernel_times
import measuring
import numpy as np
import profile_step
import scaling
from absl import app, flags

import keras_imm

FLAGS = flags.FLAGS
# `--out`, the JSON file, is the flag of benchmarks/scaling.py.
STAGES = ("step", "kernels", "loss", "generate", "by_hand", "cuda_graphs")
flags.DEFINE_list("stages", list(STAGES[:-1]), f"Some of {', '.join(STAGES)}.")
flags.DEFINE_integer("steps", 6, "Training steps of an epoch.", lower_bound=1)
flags.DEFINE_integer("epochs", 3, "Epochs timed, after one that compiles.")
flags.DEFINE_list("num_steps", "1,2,4,8", "Steps of `generate`.")
flags.DEFINE_integer("images", 64, "Images of a call of `generate`.", lower_bound=1)

OPTIMIZER = re.compile("multi_tensor|adam|lerp", re.IGNORECASE)
PRODUCTS = re.compile("gemm|nvjet|cutlass|matmul|dot|conv", re.IGNORECASE)


def batches():
    rng = np.random.default_rng(0)
    shape = (FLAGS.batch_size, *measuring.image_shape())
    return [
        (
            rng.normal(0, 0.5, shape).astype("float32"),
            rng.integers(0, measuring.num_classes(), FLAGS.batch_size).astype("int32"),
        )
        for _ in range(FLAGS.steps)
    ]


def fit(model, epochs):
    """Seconds of a step, epoch by epoch, and the losses."""
    timer = measuring.EpochTimes()
    data = measuring.Data(batches())
    history = model.fit(
        data, epochs=epochs, verbose=0, shuffle=False, callbacks=[timer]
    )
    measuring.wait(history.history["loss"])
    times = [seconds / FLAGS.steps for seconds in timer.seconds]
    return times, history.history["loss"]


def step(model):
    (first, *others), _ = fit(model, 1 + FLAGS.epochs)
    seconds, peak = float(np.median(others)), measuring.peak_mib() / 1024
    memory = keras_imm.memory.training_memory(model.backbone, FLAGS.batch_size)
    return {
        "first_epoch_seconds": first * FLAGS.steps,
        **measuring.milliseconds(others),
        "images_per_second": FLAGS.batch_size / seconds,
        "utilisation": measuring.utilisation(seconds, model.backbone),
        "peak_gib": peak,
        "predicted_gib": memory.total / 2**30,
    }


def kernels(model):
    backend = keras.backend.backend()
    data = measuring.Data(batches()[: FLAGS.profiled_steps])

    def train():
        return model.fit(data, verbose=0, shuffle=False).history["loss"]

    profile = {"torch": profile_step.profile_torch, "jax": profile_step.profile_jax}
    times = profile[backend](train)
    kernel_times.check(times)
    total = sum(times.values())

    def share(pattern):
        return sum(t for name, t in times.items() if pattern.search(name)) / total

    steps = min(FLAGS.profiled_steps, FLAGS.steps)
    return {
        "kernels_ms": total / 1000 / steps,
        "attention_share": share(kernel_times.ATTENTION),
        "products_share": share(PRODUCTS),
        # XLA fuses the update into kernels that have no name of their own.
        "optimizer_share": share(OPTIMIZER) if backend == "torch" else None,
        # Forwards and backwards, where PyTorch chose between two kernels.
        "attention_kernels": keras_imm.backend.attention_times(),
        "slowest": {
            name[:100]: t / 1000 / steps for name, t in times.most_common(FLAGS.slowest)
        },
    }


def loss(model):
    FLAGS.loss_batch = FLAGS.batch_size
    dimension = int(np.prod(measuring.image_shape()))
    return {"loss_ms": scaling.loss_milliseconds(model.group_size, dimension)}


def generate(model):
    labels = np.arange(FLAGS.images) % measuring.num_classes()
    found = {}
    for num_steps in map(int, FLAGS.num_steps):

        def call(num_steps=num_steps):
            return model.generate(
                labels, num_steps=num_steps, batch_size=FLAGS.images, verbose=0
            )

        call()
        times = [measuring.seconds(call) for _ in range(5)]
        found[f"{num_steps}_steps_ms"] = 1000 * float(np.median(times))
    return found


def by_hand(model):
    """The hand-written loops that compile, from the same weights."""
    found = {}
    data = batches()
    name = {"torch": "torch.compile", "jax": "jit", "tensorflow": "tf.function"}
    loop = measuring.hand_written_loop(name[keras.backend.backend()], model)

    def epoch():
        loop.epoch(data)
        return []

    measuring.seconds(epoch)
    times = [measuring.seconds(epoch) / FLAGS.steps for _ in range(FLAGS.epochs)]
    found.update(measuring.milliseconds(times))
    return found


def cuda_graphs(_):
    """Steps and samples with CUDA graphs and without, from the same weights."""
    if keras.backend.backend() != "torch":
        return {"note": "PyTorch alone has the switch"}
    import torch

    from keras_imm.backend.torch.graphs import use_cuda_graphs

    found, computed = {}, {}
    for name, enabled in (("without", False), ("with", True)):
        use_cuda_graphs(enabled)
        try:
            found[name], computed[name] = trained_and_sampled()
        finally:
            use_cuda_graphs(False)
    differences = [
        float(np.max(np.abs(one - other)) / np.max(np.abs(one)))
        for one, other in zip(*computed.values(), strict=True)
    ]
    found["difference"] = dict(zip(("losses", "samples"), differences, strict=True))
    if torch.cuda.is_available() and not found["with"]["replays"]:
        found["error"] = "No step was recorded: these are the same times twice"
    if not max(differences) < 1e-3:
        found["error"] = f"CUDA graphs compute something else: {found['difference']}"
    return found


def trained_and_sampled():
    """Figures of a new model under PyTorch, and its losses and samples."""
    import torch

    gc.collect()
    on_cuda = torch.cuda.is_available()
    if on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    skips = torch._dynamo.utils.counters["inductor"]["cudagraph_skips"]
    replays, replay = [], torch.cuda.CUDAGraph.replay
    torch.cuda.CUDAGraph.replay = lambda graph: (replays.append(0), replay(graph))
    try:
        model = new_model()
        (first, *others), losses = fit(model, 1 + FLAGS.epochs)
        figures = {
            "first_epoch_seconds": first * FLAGS.steps,
            **measuring.milliseconds(others),
            "peak_gib": measuring.peak_mib() / 1024,
            # With what graphs keep.
            "reserved_gib": torch.cuda.memory_reserved() / 2**30 if on_cuda else None,
            **generate(model),
        }
    finally:
        torch.cuda.CUDAGraph.replay = replay
    labels = np.arange(FLAGS.images) % measuring.num_classes()
    samples = model.generate(labels, num_steps=1, seed=0, batch_size=FLAGS.images)
    figures["replays"] = len(replays)
    figures["skipped_graphs"] = (
        torch._dynamo.utils.counters["inductor"]["cudagraph_skips"] - skips
    )
    return figures, (np.asarray(losses), np.asarray(samples))


def new_model():
    model = measuring.build()
    model.compile(
        keras.optimizers.Adam(1e-4, epsilon=1e-8, use_ema=True, ema_momentum=0.999),
        jit_compile=FLAGS.jit_compile or "auto",
    )
    return model


def main(_):
    unknown = set(FLAGS.stages) - set(STAGES)
    if unknown:
        raise ValueError(f"`--stages` must be of {STAGES}. Received: {sorted(unknown)}")
    results = {"jit_compile": FLAGS.jit_compile, **measuring.environment()}
    model = new_model()
    for stage in STAGES:
        if stage not in FLAGS.stages:
            continue
        start = time.perf_counter()
        try:
            found = globals()[stage](model)
        except Exception as error:
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:2000]}
        found["stage_seconds"] = time.perf_counter() - start
        results[stage] = found
        print(stage, json.dumps(found), flush=True)
        if FLAGS.out:
            path = pathlib.Path(FLAGS.out)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1))
            partial.replace(path)
    with contextlib.suppress(BrokenPipeError):
        print(measuring.setting())
    if any("error" in results[stage] for stage in FLAGS.stages):
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
