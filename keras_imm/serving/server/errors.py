"""Requests that are refused, and what each protocol calls that."""

HTTP_STATUSES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "NOT_FOUND": 404,
    "DEADLINE_EXCEEDED": 504,
    "RESOURCE_EXHAUSTED": 429,
    "UNAVAILABLE": 503,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
}
INSTALL = 'pip install "keras_imm[serve]"'


class RequestError(Exception):
    """A request that is not answered with what it asks for.

    Args:
        message: What to tell the client.
        code: One of `HTTP_STATUSES`: the name that gRPC and TensorFlow have for it.
    """

    def __init__(self, message: str, code: str = "INVALID_ARGUMENT"):
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> int:
        """The status of HTTP."""
        return HTTP_STATUSES.get(self.code, 500)


def missing(error: ImportError) -> ImportError:
    """The error that says how to install what the server takes."""
    return ImportError(f"{error}. The server takes what this installs: {INSTALL}")
