"""Objectives: what a flow map is trained for."""

from typing import Any

from keras_imm.objectives.averaged_weights import AveragedWeights
from keras_imm.objectives.batch_loss import Batch, BatchLoss
from keras_imm.objectives.flow_matching import FlowMatching
from keras_imm.objectives.mmd import grouped_mmd
from keras_imm.objectives.moment_matching import MomentMatching
from keras_imm.objectives.objective import Objective
from keras_imm.registry import lookup

_OBJECTIVES = {"moment_matching": MomentMatching, "flow_matching": FlowMatching}


def get(identifier: Any) -> Objective:
    """The objective of that name, or the object itself.

    Known names: "moment_matching", "flow_matching".

    Raises:
        ValueError: If the name is not known.
    """
    return lookup("objective", identifier, _OBJECTIVES, Objective)


__all__ = [
    "AveragedWeights",
    "Batch",
    "BatchLoss",
    "FlowMatching",
    "MomentMatching",
    "Objective",
    "get",
    "grouped_mmd",
]
