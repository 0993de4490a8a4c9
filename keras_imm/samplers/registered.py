"""Samplers by name."""

from keras_imm.registry import lookup
from keras_imm.samplers.euler import Euler, Heun
from keras_imm.samplers.pushforward import Pushforward
from keras_imm.samplers.restart import Restart
from keras_imm.samplers.sampler import Sampler

SAMPLERS = {
    "pushforward": Pushforward,
    "restart": Restart,
    "euler": Euler,
    "heun": Heun,
}
"""The samplers that have a name: {name: class}."""


def get(identifier: str | Sampler) -> Sampler:
    """The sampler of that name, or the object itself.

    Known names: "pushforward", "restart", "euler", "heun".

    Raises:
        ValueError: If the name is not known.
    """
    return lookup("sampler", identifier, SAMPLERS, Sampler)
