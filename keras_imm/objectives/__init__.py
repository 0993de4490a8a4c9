"""Objectives: what a flow map is trained for."""

from typing import Any

from keras_imm.objectives.averaged_weights import AveragedWeights
from keras_imm.objectives.batch_loss import Batch, BatchLoss
from keras_imm.objectives.consistency_training import ConsistencyTraining
from keras_imm.objectives.continuous_consistency import ContinuousConsistency
from keras_imm.objectives.differential_moment_matching import (
    DifferentialMomentMatching,
)
from keras_imm.objectives.flow_matching import FlowMatching
from keras_imm.objectives.mean_flow import MeanFlow
from keras_imm.objectives.mmd import grouped_mmd
from keras_imm.objectives.moment_matching import MomentMatching
from keras_imm.objectives.objective import Objective
from keras_imm.objectives.shortcut import Shortcut
from keras_imm.objectives.so_flow import SoFlow
from keras_imm.objectives.terminal_velocity_matching import TerminalVelocityMatching
from keras_imm.registry import lookup

_OBJECTIVES = {
    "moment_matching": MomentMatching,
    "flow_matching": FlowMatching,
    "mean_flow": MeanFlow,
    "so_flow": SoFlow,
    "shortcut": Shortcut,
    "consistency_training": ConsistencyTraining,
    "continuous_consistency": ContinuousConsistency,
    "differential_moment_matching": DifferentialMomentMatching,
    "terminal_velocity_matching": TerminalVelocityMatching,
}


def get(identifier: Any) -> Objective:
    """The objective of that name, or the object itself.

    Known names: "moment_matching", "flow_matching", "mean_flow", "so_flow",
    "shortcut", "consistency_training", "continuous_consistency",
    "differential_moment_matching" and "terminal_velocity_matching".

    Raises:
        ValueError: If the name is not known.
    """
    return lookup("objective", identifier, _OBJECTIVES, Objective)


__all__ = [
    "AveragedWeights",
    "Batch",
    "BatchLoss",
    "ConsistencyTraining",
    "ContinuousConsistency",
    "DifferentialMomentMatching",
    "FlowMatching",
    "MeanFlow",
    "MomentMatching",
    "Objective",
    "Shortcut",
    "SoFlow",
    "TerminalVelocityMatching",
    "get",
    "grouped_mmd",
]
