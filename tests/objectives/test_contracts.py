"""Every objective keeps the contract."""

import pytest
from contracts.objective import ObjectiveContract

from keras_imm import kernels
from keras_imm.objectives import (
    ConsistencyTraining,
    ContinuousConsistency,
    DifferentialMomentMatching,
    MeanFlow,
    Shortcut,
    SoFlow,
    TerminalVelocityMatching,
)

INSTANCES = {
    "MeanFlow": lambda: MeanFlow(flow_matching_share=0.5),
    "MeanFlow, improved, guided": lambda: MeanFlow(
        improved=True, omega=0.8, kappa=0.5, guided_until=0.7
    ),
    "MeanFlow, cifar10_v1": lambda: MeanFlow.from_preset("cifar10_v1"),
    "SoFlow": lambda: SoFlow(flow_matching_share=0.5),
    "SoFlow, imagenet256": lambda: SoFlow.from_preset("imagenet256"),
    "SoFlow, cifar10": lambda: SoFlow.from_preset("cifar10"),
    "Shortcut": lambda: Shortcut(bootstrap_share=0.25),
    "Shortcut, guided": lambda: Shortcut(bootstrap_share=0.5, guidance_scale=1.5),
    "ConsistencyTraining": ConsistencyTraining,
    "ConsistencyTraining, Huber": lambda: ConsistencyTraining(stages=3, huber=0.1),
    "ContinuousConsistency": ContinuousConsistency,
    "DifferentialMomentMatching": DifferentialMomentMatching,
    "DifferentialMomentMatching, RBF": lambda: DifferentialMomentMatching(
        "rbf", group_size=2
    ),
    "DifferentialMomentMatching, Huber": lambda: DifferentialMomentMatching(
        kernels.PseudoHuber(0.3), times="logit_normal"
    ),
    "TerminalVelocityMatching": TerminalVelocityMatching,
}


# One of each kind on every backend, the others on one.
PARAMETERS = [
    pytest.param(
        name,
        marks=pytest.mark.one_backend("a variant of one that each backend tests")
        if ", " in name
        else (),
    )
    for name in INSTANCES
]


@pytest.mark.parametrize("instance", PARAMETERS, indirect=True)
class TestContract(ObjectiveContract):
    @pytest.fixture
    def instance(self, request):
        return INSTANCES[request.param]()
