"""Constructors name the argument that is wrong, whatever it is, or take it."""

import inspect
import warnings

import keras
import numpy as np
import pytest
from small_dit import small_dit

import keras_imm
from keras_imm import (
    augmentation,
    backbones,
    callbacks,
    kernels,
    layers,
    metrics,
    objectives,
    optimizers,
    parameterizations,
    pixels,
    samplers,
    schedules,
    time_distributions,
    time_mappings,
    weightings,
)

WRONG = {
    "None": None,
    "text": "nonsense",
    "bytes": b"x",
    "-1": -1,
    "0": 0,
    "3.5": 3.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "True": True,
    "list": [],
    "mixed list": [1, "a"],
    "dict": {},
    "object": object(),
    "array": np.zeros((2, 2)),
    "function": lambda: 0,
}
FEATURES = np.random.default_rng(0).standard_normal((20, 2))
# What a constructor needs beside the argument that is wrong.
NEEDED = {
    "c": 0.03,
    "embedding_dim": 4,
    "flow_map": keras_imm.FlowMap(small_dit()),
    "momenta": {"target": 0.9},
    "objective": objectives.FlowMatching(),
    "seed_generator": keras.random.SeedGenerator(0),
    "backbone": small_dit(),
    "batch_size": 4,
    "covariance": np.eye(2),
    "depth": 1,
    "directory": "folder",
    "filters": 4,
    "folder": "folder",
    "grid_shape": (2, 2),
    "hidden_size": 16,
    "image_shape": (4, 4, 1),
    "log_dir": "folder",
    "mean": np.zeros(2),
    "model_channels": 4,
    "num_heads": 2,
    "patch_size": 2,
    "path": "picture.png",
    "reference": FEATURES,
}
MODULES = (
    *(augmentation, backbones, callbacks, kernels, layers, objectives, optimizers),
    *(parameterizations, pixels, samplers, schedules, time_distributions),
    *(time_mappings, weightings, metrics),
)
SAMPLING = {
    "SampleGrid": {"num_samples": 4, "filepath": "picture.png"},
    "Sampling": {"num_samples": 4},
    "SampleMetrics": {"num_samples": 4, "metrics": {"one": lambda *_: 1.0}},
    "QualityMonitor": {"num_samples": 4, "held_out": np.zeros((4, 4, 4, 1), "float32")},
}
# They read data sets, download weights, or are made of such by other functions.
ELSEWHERE = {
    *("DigitsQuality", "FashionMNISTClassifier", "FashionMNISTQuality"),
    *("InceptionV3", "ReferenceStatistics", "SampleQuality"),
}


def classes():
    found = {"IMM": keras_imm.IMM, "FlowMap": keras_imm.FlowMap}
    for module in MODULES:
        names = getattr(module, "__all__", None) or vars(module)
        for name in names:
            one = getattr(module, name)
            own = inspect.isclass(one) and one.__module__.startswith("keras_imm.")
            abstract = name.startswith("_") or issubclass(one, tuple) if own else True
            if own and not abstract and name not in ELSEWHERE:
                found[name] = one
    return found


CLASSES = classes()


@pytest.mark.one_backend("checks of arguments, before any backend is asked")
@pytest.mark.parametrize("name", sorted(CLASSES))
def test_what_is_wrong_is_named(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    kind = CLASSES[name]
    parameters = [
        one
        for one in inspect.signature(kind).parameters.values()
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    needed = {
        one.name: NEEDED[one.name]
        for one in parameters
        if one.default is one.empty and one.name in NEEDED
    } | SAMPLING.get(name, {})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind(**needed)
        for parameter in parameters:
            for described, wrong in WRONG.items():
                try:
                    kind(**needed | {parameter.name: wrong})
                except (ValueError, TypeError) as error:
                    about = f"{parameter.name}={described}: {error}"
                    assert parameter.name in str(error), about


def test_there_are_classes():
    assert len(CLASSES) > 50
