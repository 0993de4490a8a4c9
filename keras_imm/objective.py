"""`keras_imm.objectives`, under the name it had when there was one objective."""

from keras_imm.objectives.mmd import grouped_mmd
from keras_imm.objectives.moment_matching import (
    MomentMatching,
    Particles,
    sample_times,
)

__all__ = ["MomentMatching", "Particles", "grouped_mmd", "sample_times"]
