"""Every error of the project, as one tree. The type says what can be done about it, the message says it to a person.

    WorkbenchError                  root; `fix` is a sentence that says what to do next
     ├─ UsageError                  the caller asked for something that cannot be (exit code 2)
     │   ├─ ConfigError             a file or variable is wrong; names file, line and field
     │   └─ InvalidRequest          a request to one of our own HTTP interfaces is wrong
     ├─ EnvironmentProblem          this machine is in the way
     │   ├─ PortInUse
     │   ├─ StateFolderError        not writable, in use by another process
     │   └─ DiskFull
     ├─ TransientError              worth trying again, after `retry_after` seconds
     │   └─ Unavailable             a peer does not answer
     └─ PermanentError              trying again changes nothing
         ├─ NotFound
         ├─ Unauthorized
         ├─ WireError               bytes of a peer that we cannot read; `reason` is a metric label
         └─ StaleState              what was seen has changed since

Broad `except` clauses stand at four edges only: request handler, task supervisor, user-interface callback, command line.
"""

from __future__ import annotations


class WorkbenchError(Exception):
    """Root of the tree. `str(error)` is one to three lines: what failed, on what, what to do."""

    def __init__(self, message: str, *, fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n{self.fix}" if self.fix else self.message

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback (IPython asks for this name)."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.__dict__.copy()))


def _rebuild(kind: type[WorkbenchError], state: dict[str, object]) -> WorkbenchError:
    error = kind.__new__(kind)
    Exception.__init__(error, state.get("message", ""))
    error.__dict__.update(state)
    return error


class UsageError(WorkbenchError):
    """The caller asked for something that cannot be; the command line ends with exit code 2."""


class ConfigError(UsageError):
    """A configuration file or an environment variable is wrong."""

    def __init__(self, message: str, *, file: str = "", line: int = 0, field: str = "", fix: str = "") -> None:
        where = ":".join(str(part) for part in (file, line) if part)
        prefix = " ".join(part for part in (where, f"`{field}`" if field else "") if part)
        super().__init__(f"{prefix}: {message}" if prefix else message, fix=fix)
        self.file, self.line, self.field = file, line, field


class InvalidRequest(UsageError):
    """A request to one of our own HTTP interfaces is wrong (400)."""

    def __init__(self, message: str, *, param: str = "", fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.param = param


class EnvironmentProblem(WorkbenchError):
    """This machine is in the way: a port, a folder, the disk."""


class PortInUse(EnvironmentProblem):
    """Somebody listens on an address that we need."""

    def __init__(self, host: str, port: int, *, what: str = "", fix: str = "") -> None:
        super().__init__(
            f"{host}:{port} is taken{f', {what} cannot listen there' if what else ''}.",
            fix=fix or "Stop the other program, or choose another range with --port-base.",
        )
        self.host, self.port = host, port


class StateFolderError(EnvironmentProblem):
    """The state folder is not writable or belongs to another running stack."""


class DiskFull(EnvironmentProblem):
    """No room left where history or state is written."""


class TransientError(WorkbenchError):
    """Worth trying again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.retry_after = retry_after


class Unavailable(TransientError):
    """A peer does not answer."""


class PermanentError(WorkbenchError):
    """Trying again changes nothing."""


class NotFound(PermanentError):
    """No such object."""


class Unauthorized(PermanentError):
    """The token is missing, wrong, or its role is too small."""


class WireError(PermanentError):
    """Bytes of a peer that cannot be read. `reason` is short and from a closed set, so that it can label a metric."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(message or reason)
        self.reason = reason


class StaleState(PermanentError):
    """What the caller decided on has changed since it was read."""
