"""Objects that are saved inside a model's file and brought back from it."""

import json
import sys
from collections.abc import Callable

import keras
import pytest


class SerializableContract:
    """Saved as a registered name and a config. `make()` returns an instance."""

    make: Callable

    @pytest.fixture
    def instance(self):
        return type(self).make()

    def test_config_round_trip(self, instance):
        config = keras.saving.serialize_keras_object(instance)
        # A file holds JSON.
        config = json.loads(json.dumps(config))
        back = keras.saving.deserialize_keras_object(config)
        assert type(back) is type(instance)
        assert back.get_config() == instance.get_config()

    def test_registered_under_a_name_of_its_own(self, instance):
        kind = type(instance)
        name = keras.saving.get_registered_name(kind)
        assert ">" in name, f"{kind.__name__} is not registered for saving"
        # A second class of the same name takes the place of the first.
        assert keras.saving.get_registered_object(name) is kind

    def test_importable(self, instance):
        kind = type(instance)
        assert getattr(sys.modules[kind.__module__], kind.__qualname__) is kind
