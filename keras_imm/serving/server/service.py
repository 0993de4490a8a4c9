"""One model behind the limits of a server, whatever protocol asks."""

import asyncio

from keras_imm.serving.server.batching import Batches
from keras_imm.serving.server.errors import RequestError
from keras_imm.serving.server.limits import Limits
from keras_imm.serving.server.metrics import Metrics
from keras_imm.serving.server.servable import Arrays, Servable


class Service:
    """Predictions of one model.

    Args:
        name: Its name in paths.
        servable: The model.
        limits: What to refuse.

    Attributes:
        is_stopping: Whether new requests are refused, for the server ends.
    """

    def __init__(self, name: str, servable: Servable, limits: Limits | None = None):
        self.name = name
        self.servable = servable
        self.limits = limits = limits or Limits()
        self.metrics = Metrics(lambda: self._batches.rows)
        self.is_stopping = False
        self._batches = Batches(
            servable.run,
            limits.max_batch_size,
            limits.max_delay_ms / 1000.0,
            limits.max_queue,
            self.metrics.count_pass,
        )

    async def predict(self, signature_name: str, inputs: Arrays) -> Arrays:
        """The outputs of a signature.

        Raises:
            RequestError: If the inputs are not those of the signature, or a limit is
                passed.
        """
        rows = self.servable.check(signature_name, inputs)
        if rows > self.limits.max_rows:
            raise RequestError(
                f"A request may have {self.limits.max_rows} rows. Received: {rows}"
            )
        self.metrics.count_rows(rows)
        try:
            async with asyncio.timeout(self.limits.timeout_s):
                return await self._batches(signature_name, inputs)
        except TimeoutError:
            raise RequestError(
                f"There was no answer within {self.limits.timeout_s:g} seconds.",
                "DEADLINE_EXCEEDED",
            ) from None

    def check_running(self) -> None:
        """Raises RequestError once the server stops."""
        if self.is_stopping:
            raise RequestError("The server is stopping.", "UNAVAILABLE")

    def check_served(self, name: str, version: str | int | None = None) -> None:
        """Raises RequestError unless the model has this name and version."""
        own = str(self.servable.version)
        if name != self.name or (version is not None and str(version) != own):
            which = f"Latest({name})"
            if version is not None:
                which = f"Specific({name}, {version})"
            raise RequestError(f"Servable not found for request: {which}", "NOT_FOUND")

    @property
    def is_computing(self) -> bool:
        """Whether a pass is computed, which nothing can interrupt."""
        return self._batches.is_computing

    def close(self) -> None:
        """Ends the thread that computes, after its pass, which is not waited for."""
        self._batches.close()
