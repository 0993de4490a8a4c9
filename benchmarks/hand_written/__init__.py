"""Training loops and samplers written for one framework each, without Keras.

They are what the benchmarks compare the library with: the same network, objective,
optimizer and averages, as plainly as each framework lets one write them.
"""

import importlib


def get(framework):
    """The module of "jax", "tensorflow" or "torch"."""
    return importlib.import_module(f"{__name__}.{framework}_loop")
