"""The golden numbers of the FID network and of the sample metrics."""

import pathlib

import numpy as np
import pytest


@pytest.fixture(scope="session")
def golden():
    path = pathlib.Path(__file__).parents[1] / "data" / "inception.npz"
    with np.load(path) as file:
        return dict(file)
