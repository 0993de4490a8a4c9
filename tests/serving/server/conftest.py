"""A small model, and a server of NumPy's arithmetic."""

import numpy as np
import pytest
from running_server import Doubling, RunningServer
from small_dit import small_dit

import keras_imm


@pytest.fixture(scope="session")
def tiny_model():
    model = keras_imm.IMM(small_dit(), seed=0)
    rng = np.random.default_rng(7)
    for v in model.trainable_variables:
        v.assign(0.3 * rng.standard_normal(v.shape).astype("float32"))
    return model


@pytest.fixture(scope="module")
def server():
    """The model of `Doubling` over HTTP and gRPC."""
    with RunningServer(Doubling(), grpc=True, max_rows=500, max_body_mb=1) as server:
        yield server
