"""A setting that is changed by several, and is put back by the last of them."""

import contextlib

import pytest

from keras_imm.backend.shared_setting import SharedSetting

pytestmark = pytest.mark.one_backend("it knows no backend")


@pytest.fixture
def settings():
    return {"precision": "fast"}


@pytest.fixture
def full(settings):
    @contextlib.contextmanager
    def change():
        before = settings["precision"]
        settings["precision"] = "full"
        try:
            yield
        finally:
            settings["precision"] = before

    return SharedSetting(change)


def test_it_is_changed_inside_and_put_back(settings, full):
    with full():
        assert settings["precision"] == "full"
        settings["precision"] = "changed inside"
        with full():
            assert settings["precision"] == "full"
        assert settings["precision"] == "changed inside"
    assert settings["precision"] == "fast"


def test_an_exception_goes_through_and_leaves_nothing_changed(settings, full):
    with pytest.raises(KeyError, match="own"), full():
        raise KeyError("own")
    assert settings["precision"] == "fast"


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (0, 2, 1)])
def test_whoever_leaves_first_changes_nothing_for_the_others(settings, full, order):
    """As threads do that do not know of each other."""
    scopes = [full() for _ in range(3)]
    for scope in scopes:
        scope.__enter__()
    for left, index in enumerate(order, 1):
        scopes[index].__exit__(None, None, None)
        assert settings["precision"] == ("full" if left < 3 else "fast")


def test_a_change_that_fails_is_not_waited_for(settings, full):
    def fail():
        raise OSError("no")

    failing = SharedSetting(fail)
    with pytest.raises(OSError), failing():
        pass
    assert not failing._entries
