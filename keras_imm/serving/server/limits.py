"""What a server takes at once."""

import dataclasses

from keras_imm.validation import check_integer, check_positive_number


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_batch_size: The most rows of a pass of the network, positive.
        max_delay_ms: Milliseconds that a request waits for others while nothing is
            computed, 0 or more.
        max_rows: The most rows of a request, positive.
        max_queue: The most rows under way, at least `max_rows`.
        max_body_mb: The largest body, in 2^20 bytes, positive.
        timeout_s: Seconds that a body, and an answer, may take, positive.

    Raises:
        ValueError: If one is out of its range.
    """

    max_batch_size: int = 64
    max_delay_ms: float = 0.0
    max_rows: int = 1024
    max_queue: int = 4096
    max_body_mb: float = 16.0
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_rows", "max_queue"):
            check_integer(name, getattr(self, name), at_least=1)
        for name in ("max_body_mb", "timeout_s"):
            check_positive_number(name, getattr(self, name))
        if not 0.0 <= self.max_delay_ms < float("inf"):
            raise ValueError(
                "`max_delay_ms` must be a finite number, 0 or more. "
                f"Received: max_delay_ms={self.max_delay_ms!r}"
            )
        if self.max_queue < self.max_rows:
            raise ValueError(
                "`max_queue` must be at least `max_rows`. Received: "
                f"max_queue={self.max_queue}, max_rows={self.max_rows}"
            )

    @property
    def max_body_bytes(self) -> int:
        """`max_body_mb` in bytes."""
        return int(self.max_body_mb * 2**20)
