"""Checks of arguments: what passes, and what the error says."""

import numpy as np
import pytest

from keras_imm import validation

NAN, INF = float("nan"), float("inf")


def below_one(value):
    return value < 1


# Each check with values that pass and values that do not.
CHECKS = {
    "instance": (lambda n, v: validation.check_instance(n, v, str), ["a"], [1, None]),
    "choice": (
        lambda n, v: validation.check_choice(n, v, ("a", "b")),
        ["a", "b"],
        ["c", None, 1, ["a"]],
    ),
    "boolean": (validation.check_boolean, [True, False], [0, 1, None, "True"]),
    "number": (
        lambda n, v: validation.check_number(n, v, "below 1", below_one),
        [0, -3.5, np.float32(0.5), np.int64(0)],
        [1, NAN, -INF, True, "0", None, 1j],
    ),
    "positive_number": (
        validation.check_positive_number,
        [1, 1e-30, np.float64(2)],
        [0, -1, NAN, INF, True, "1", None],
    ),
    "fraction": (validation.check_fraction, [0, 1, 0.5], [-0.1, 1.1, NAN, True]),
    "rate": (validation.check_rate, [0, 0.5], [1, 1.0, -0.1, NAN, False]),
    "integer": (
        lambda n, v: validation.check_integer(n, v, at_least=2),
        [2, 7, np.int32(3)],
        [1, 2.0, NAN, True, "2", None],
    ),
}
PASSING = [(check, v) for check, good, _ in CHECKS.values() for v in good]
FAILING = [(check, v) for check, _, bad in CHECKS.values() for v in bad]


@pytest.mark.parametrize(("check", "value"), PASSING)
def test_passes(check, value):
    assert check("width", value) is None


@pytest.mark.parametrize(("check", "value"), FAILING)
def test_says_name_and_value(check, value):
    with pytest.raises(ValueError, match="`width` must be") as error:
        check("width", value)
    assert f"Received: width={value!r}" in str(error.value)


def test_says_what_is_allowed():
    with pytest.raises(ValueError, match="must be one of 'a', 'b'"):
        validation.check_choice("width", "c", ("a", "b"))
    with pytest.raises(ValueError, match="must be below 1"):
        validation.check_number("width", 2, "below 1", below_one)
    with pytest.raises(ValueError, match="must be an integer of at least 2"):
        validation.check_integer("width", 1, at_least=2)


@pytest.mark.parametrize(
    ("batch", "options"),
    [(8, {}), (16, {"accumulation_steps": 4}), (24, {"devices": 2}), (None, {})],
)
def test_batch_sizes_of_whole_groups(batch, options):
    assert validation.check_batch_size(batch, 4, **options) is None


@pytest.mark.parametrize(
    ("batch", "options", "said"),
    [
        (6, {}, "group_size=4, accumulation_steps=1, batch size 6"),
        (8, {"accumulation_steps": 4}, "accumulation_steps=4, batch size 8"),
        (12, {"devices": 2}, "accumulation_steps=1, 2 devices, batch size 12"),
    ],
)
def test_other_batch_sizes(batch, options, said):
    with pytest.raises(ValueError, match="must be a multiple of `group_size`") as error:
        validation.check_batch_size(batch, 4, **options)
    assert said in str(error.value)
    assert ("times the number of devices" in str(error.value)) == ("devices" in options)
