"""Rows of one batch that learn the flow's velocity, beside rows that learn jumps."""

import fractions
from typing import Any

from keras import ops

from keras_imm.validation import check_number

_MAX_PERIOD = 16  # units after which the roles of a share repeat


class Roles:
    """Which units of a batch, rows or groups of rows, are for the flow's velocity.

    Units have their role by their place: of every `period` consecutive ones the first
    `jumps` learn jumps, the others the velocity.

    Args:
        name: The argument that gives the share, for messages.
        share: Share of the units that are for the velocity: a fraction in [0, 1) with
            a denominator of at most 16.
        rows: Rows of a unit.

    Raises:
        ValueError: If `share` is not such a fraction.
    """

    def __init__(self, name: str, share: float, rows: int = 1):
        check_number(
            name,
            share,
            f"a fraction in [0, 1) with a denominator of at most {_MAX_PERIOD}",
            lambda share: 0 <= share < 1 and is_fraction(share),
        )
        share = _fraction(share)
        self.share = float(share)
        self.period = share.denominator
        self.jumps = share.denominator - share.numerator
        self._rows = rows

    @property
    def rows_together(self) -> int:
        """Rows after which the roles repeat."""
        return self.period * self._rows

    def of_velocity(self, units: Any) -> Any:
        """Which units are for the velocity, booleans of shape (units,)."""
        return ops.arange(units, dtype="int32") % self.period >= self.jumps

    def rows_of_velocity(self, x: Any) -> Any:
        """The rows of a tensor that are for the velocity, in their order, or None."""
        return self._rows_from(x, self.jumps, self.period)

    def rows_of_jumps(self, x: Any) -> Any:
        """The other rows of a tensor, in their order, or None."""
        return self._rows_from(x, 0, self.jumps)

    def merged(self, jumps: Any, velocity: Any) -> Any:
        """All rows in their places again, from those of either role."""
        if self.jumps == self.period:
            return jumps
        shape = tuple(jumps.shape[1:])
        runs = (
            ops.reshape(x, (-1, count * self._rows, *shape))
            for x, count in ((jumps, self.jumps), (velocity, self.period - self.jumps))
        )
        return ops.reshape(ops.concatenate(list(runs), axis=1), (-1, *shape))

    def _rows_from(self, x: Any, first: int, end: int) -> Any:
        if x is None:
            return None
        shape = tuple(x.shape[1:])
        runs = ops.reshape(x, (-1, self.rows_together, *shape))
        rows = runs[:, first * self._rows : end * self._rows]
        return ops.reshape(rows, (-1, *shape))


def is_fraction(share: float) -> bool:
    """Whether a share is a fraction with a denominator of at most 16."""
    return abs(_fraction(share) - share) < 1e-6


def _fraction(share: float) -> fractions.Fraction:
    return fractions.Fraction(float(share)).limit_denominator(_MAX_PERIOD)
