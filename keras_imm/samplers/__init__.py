"""Samplers: from noise to data along a grid of times, given a flow map."""

from keras_imm.samplers.euler import Euler, Heun
from keras_imm.samplers.generation import Generator, walk
from keras_imm.samplers.noise import numbered_draws, standard_noise
from keras_imm.samplers.plan import SamplingPlan, check_labels
from keras_imm.samplers.pushforward import Pushforward
from keras_imm.samplers.registered import SAMPLERS, get
from keras_imm.samplers.restart import Restart
from keras_imm.samplers.sampler import Sampler
from keras_imm.samplers.time_grids import (
    TIME_GRIDS,
    edm_grid,
    eta_grid,
    time_grid,
    uniform_grid,
)

__all__ = [
    "SAMPLERS",
    "TIME_GRIDS",
    "Euler",
    "Generator",
    "Heun",
    "Pushforward",
    "Restart",
    "Sampler",
    "SamplingPlan",
    "check_labels",
    "edm_grid",
    "eta_grid",
    "get",
    "numbered_draws",
    "standard_noise",
    "time_grid",
    "uniform_grid",
    "walk",
]
