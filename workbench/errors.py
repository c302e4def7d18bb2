"""The door to every error that operators' code can meet. One tree for the whole project; what stands here is its client half.

    WorkbenchError                  root; `fix` is a sentence that says what to do next
     ├─ UsageError                  you asked for something that cannot be (exit code 2)
     │   ├─ ConfigError             a file or variable is wrong; names file, line and field
     │   └─ InvalidRequest          the server refused the request as it was put
     ├─ EnvironmentProblem          this machine is in the way
     │   ├─ PortInUse
     │   ├─ StateFolderError
     │   └─ DiskFull
     ├─ TransientError              worth trying again, after `retry_after` seconds
     │   └─ Unavailable             a peer does not answer
     │       └─ NotConnected        nobody answers at the target, or the workbench was closed
     └─ PermanentError              trying again changes nothing
         ├─ NotFound                no such pod, decision, file
         ├─ Unauthorized            the token is missing, wrong, or its role is too small
         ├─ StaleState              what you decided on has changed since
         ├─ OperationFailed         what was applied did not come to its end; the message says why
         └─ UnreadableAnswer        the server speaks another version

In notebooks these show as one to three lines instead of a traceback.

>>> issubclass(NotConnected, Unavailable), issubclass(NotFound, WorkbenchError)
(True, True)
"""

from __future__ import annotations

from backend.api.errors import (
    ConfigError,
    DiskFull,
    EnvironmentProblem,
    InvalidRequest,
    NotFound,
    PermanentError,
    PortInUse,
    StaleState,
    StateFolderError,
    TransientError,
    Unauthorized,
    Unavailable,
    UsageError,
    WorkbenchError,
)

__all__ = [
    "ConfigError",
    "DiskFull",
    "EnvironmentProblem",
    "InvalidRequest",
    "NotConnected",
    "NotFound",
    "OperationFailed",
    "PermanentError",
    "PortInUse",
    "StaleState",
    "StateFolderError",
    "TransientError",
    "Unauthorized",
    "Unavailable",
    "UnreadableAnswer",
    "UsageError",
    "WorkbenchError",
]


class NotConnected(Unavailable):
    """Nobody answers at the target, or this workbench was closed."""


class UnreadableAnswer(PermanentError):
    """The server's answer has not the shape that this version knows."""


class OperationFailed(PermanentError):
    """A rollout did not come to its end: it failed, or somebody aborted it."""
