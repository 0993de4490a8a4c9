"""One of the processes that torchrun starts, against one device that has all data."""

import sys
import warnings

import keras
import numpy as np
import runs
import torch
import torch.distributed as dist

from keras_imm import distribution
from keras_imm.backend.random_streams import random_states
from keras_imm.objectives import MomentMatching


def alone(function):
    """What a function returns in a process that knows no others."""
    initialized, dist.is_initialized = dist.is_initialized, lambda: False
    try:
        return function()
    finally:
        dist.is_initialized = initialized


def gathered(value):
    """The value of every process."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def own_batches(batch_size):
    """This process's half of every batch, in the order of the whole."""
    images, labels = runs.data()
    rank, half = dist.get_rank(), batch_size // 2
    rows = [
        row
        for start in range(0, len(images), batch_size)
        for row in range(start + rank * half, start + (rank + 1) * half)
    ]
    return runs.Batches(images[rows], labels[rows], half)


def same_update(optimizer, steps, **options):
    one = alone(lambda: runs.make(optimizer=optimizer(), **options))
    losses = alone(lambda: runs.fit(one))
    two = runs.make(optimizer=optimizer(), steps=steps, **options)
    if not distribution.is_chief():  # the first process's weights are everyone's
        for variable in two.weights + two.optimizer.variables:
            variable.assign(variable * 0)
        for variable in random_states(two):
            variable.assign(variable * 0)
    history = two.fit(own_batches(16), shuffle=False, verbose=0).history["loss"]
    states = gathered((runs.state(two).tobytes(), runs.random_state(two), history))
    return (
        one,
        two,
        {
            "losses": [losses, history],
            "difference": runs.difference(runs.state(two), runs.state(one)),
            "processes_differ": any(state != states[0] for state in states),
        },
    )


def afterwards(one, two, path):
    """What a trained model is for."""
    batches = runs.Batches(*runs.data(), 16)
    evaluate = [
        float(alone(lambda: one.evaluate(batches, verbose=0))),
        float(two.evaluate(own_batches(16), verbose=0)),
    ]
    if distribution.is_chief():
        two.save(path)
    distribution.barrier()
    loaded = keras.saving.load_model(path, runs.OBJECTS)
    request = {"labels": [0, 1, 2], "num_steps": 2, "seed": 5}
    samples = two.generate(**request)
    raw = two.generate(**request, weights="raw")
    return {
        "evaluate": evaluate,
        "saved": runs.difference(runs.state(loaded), runs.state(two)),
        "samples": runs.difference(samples, loaded.generate(**request)),
        "samples_of_one": runs.difference(samples, one.generate(**request)),
        "averaged": runs.difference(raw, samples),
        "second_fit": two.fit(own_batches(16), verbose=0).history["loss"],
    }


def traced():
    """Two runs with dropout; whether layers were called after the first step."""
    calls, states = [], []
    for _ in range(2):
        two = runs.make(optimizer=runs.clipped(), dropout=0.5, steps=2)
        batches = own_batches(16)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*PyTorch")
            two.fit(batches, shuffle=False, verbose=0)
        call = two.backbone.call
        two.backbone.call = lambda *args, call=call, **options: (
            calls.append(0),
            call(*args, **options),
        )[1]
        two.fit(batches, shuffle=False, verbose=0)
        states += gathered((runs.state(two).tobytes(), runs.random_state(two)))
    return {"calls": len(calls), "differ": any(one != states[0] for one in states)}


def own_draws():
    """A step whose processes have the same data, against each alone."""
    images, labels = runs.data(8)
    two = runs.make(MomentMatching, dropout=0.5)
    losses, state = runs.losses_of_devices(two, [(images, labels)] * 2)
    logged = two.fit(runs.Batches(images, labels, 8), verbose=0).history["loss"][0]
    return {
        "alone": losses,
        "logged": logged,
        "states": [state, *gathered(runs.random_state(two))],
    }


def frozen():
    """Freezing between two fits: what is frozen stays, the rest moves, alike."""
    two = runs.make(backbone=runs.small)
    two.fit(own_batches(16), verbose=0)
    frozen = two.backbone.blocks[0]
    frozen.trainable = False
    two.compile(runs.descent())
    before = [v.numpy() for v in frozen.weights]
    table = two.backbone.label_embedding.embeddings.numpy()
    two.fit(own_batches(16), verbose=0)
    after = [v.numpy() for v in frozen.weights]
    states = gathered(runs.state(two).tobytes())
    return {
        "frozen_moved": any(np.any(a != b) for a, b in zip(before, after, strict=True)),
        "rest_moved": bool(np.any(table != two.backbone.label_embedding.embeddings)),
        "processes_differ": states[0] != states[1],
    }


def joined_late():
    """Processes that took different numbers of steps alone, and then one together."""
    two = runs.make(optimizer=runs.clipped(), backbone=runs.small, dtype="float32")
    batches = runs.Batches(*runs.data(dtype="float32"), 8)
    for _ in range(1 + dist.get_rank()):
        alone(lambda: runs.fit(two, batches))
    apart = gathered(int(two.optimizer.iterations))
    two.fit(own_batches(32), shuffle=False, verbose=0)
    states = gathered(runs.state(two).tobytes())
    return {
        "apart": apart,
        "together": gathered(int(two.optimizer.iterations)),
        "processes_differ": states[0] != states[1],
    }


def few_buffers():
    """What is sent for gradients of two dtypes and a weight that one process lacks."""
    from keras_imm.backend.torch import parallel

    rank = dist.get_rank()
    kinds = [(torch.float32, 6), (torch.float64, 4), (torch.float32, 3)] * 2
    weights = [torch.zeros(size, dtype=dtype) for dtype, size in kinds]
    weights.append(torch.zeros(2, 2))
    gradients = [(rank + i) * torch.ones_like(w) for i, w in enumerate(weights)]
    gradients[1] = None if rank else gradients[1]
    gradients[2] = None
    sent, all_reduce = [], dist.all_reduce

    def counted(tensor, **options):
        sent.append([str(tensor.dtype), tensor.numel()])
        return all_reduce(tensor, **options)

    dist.all_reduce = counted
    try:
        means = parallel.GradientMeans(weights)
        found = [means(gradients) for _ in range(2)][1]
        parallel._BUFFER_BYTES = 64
        sent, all_sent = [], sent
        small = means(gradients)
        sent, sent_small = [], sent
        late = means(only(rank, weights))
        again = means(gradients)
    finally:
        dist.all_reduce = all_reduce
    runs_of = {"means": found, "small": small, "late": late, "again": again}
    return {
        "sent": all_sent,
        "sent_small": sent_small,
        **{
            name: [None if m is None else m.tolist() for m in means]
            for name, means in runs_of.items()
        },
    }


def only(rank, weights):
    """Gradients of two weights that one process has, and of one that the other has."""
    gradients = [None] * len(weights)
    for i in (2, 3) if rank else (5,):
        gradients[i] = (10.0 + i) * torch.ones_like(weights[i])
    return gradients


def refused():
    two = runs.make(MomentMatching)
    images, labels = runs.data()
    count = 8 * (1 + dist.get_rank())
    uneven = runs.Batches(images[:count], labels[:count], 8)
    before = runs.random_state(two)
    return {
        "lengths": runs.error(lambda: two.fit(uneven, verbose=0)),
        "group": runs.error(
            lambda: two.fit(runs.Batches(images, labels, 6), verbose=0)
        ),
        "states": [before, runs.random_state(two)],
        "devices": runs.error(lambda: distribution.initialize(devices=["cpu:0"])),
    }


def main(folder):
    distribution.initialize()
    distribution.initialize()  # again: nothing
    seen = {
        "processes": gathered(
            [
                distribution.process_index(),
                distribution.process_count(),
                distribution.num_devices(),
                distribution.is_chief(),
            ]
        )
    }
    seen["accumulated"] = alone(runs.accumulated)
    _, _, seen["descent"] = same_update(
        runs.descent, steps=2, backbone=runs.WithUnusedWeight, remat=True
    )
    one, two, seen["clipped"] = same_update(runs.clipped, steps=2)
    seen["afterwards"] = afterwards(one, two, f"{folder}/model.keras")
    seen["own_draws"] = own_draws()
    seen["frozen"] = frozen()
    seen["traced"] = traced()
    seen["joined_late"] = joined_late()
    seen["few_buffers"] = few_buffers()
    _, _, seen["half_precision"] = same_update(
        runs.scaled, steps=2, backbone=runs.small, dtype="mixed_float16"
    )
    seen["refused"] = refused()
    if distribution.is_chief():
        runs.write(seen, folder)


torch.set_num_threads(1)
main(sys.argv[1])
