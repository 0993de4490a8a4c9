"""Every sampler of the package has a name and a place in files."""

import keras
import pytest
from contracts import subclasses_of

from keras_imm import samplers
from keras_imm.samplers import euler, pushforward, restart

NAMES = {
    "pushforward": samplers.Pushforward,
    "restart": samplers.Restart,
    "euler": samplers.Euler,
    "heun": samplers.Heun,
}


@pytest.mark.parametrize(("name", "kind"), NAMES.items())
def test_names(name, kind):
    assert type(samplers.get(name)) is kind
    found = keras.saving.get_registered_name(kind)
    assert found == f"keras_imm.samplers>{kind.__name__}"


def test_every_class_has_a_name():
    assert samplers.SAMPLERS == NAMES
    modules = (euler, pushforward, restart)
    classes = [subclasses_of(samplers.Sampler, module) for module in modules]
    assert set().union(*classes) == set(NAMES.values())


def test_objects_stay_what_they_are():
    sampler = samplers.Heun()
    assert samplers.get(sampler) is sampler


@pytest.mark.parametrize("identifier", ["ddim", "Euler", None, 3, samplers.Euler])
def test_what_is_not_known_is_told_what_is(identifier):
    with pytest.raises(ValueError, match="`sampler` must be one of") as error:
        samplers.get(identifier)
    message = str(error.value)
    for name in NAMES:
        assert repr(name) in message
