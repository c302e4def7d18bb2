"""Files that other processes read: written whole or not at all, with errors that say what to do."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from backend.core.errors import DiskFull, StateFolderError


def write_atomic(path: Path, data: bytes, *, mode: int = 0o600, durable: bool = False) -> None:
    """Replace `path` in one step; readers see the old or the new content, never a part. `durable` waits for the disk."""
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.chmod(temporary, mode)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise explain(error, path) from error


def explain(error: OSError, path: Path) -> Exception:
    """The error of our tree that fits an operating-system error on `path`; the error itself when none does."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"No room left to write {path}.", fix="Free some space; nothing already written was lost.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StateFolderError(f"{path.parent} is not writable.", fix="Choose another folder with --state, or change its owner.")
    return error


def ensure_folder(path: Path) -> Path:
    """Create `path` (0700) if needed and prove that we can write there."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = path / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except NotADirectoryError as error:
        raise StateFolderError(f"{path} is not a folder.", fix="Choose another folder with --state.") from error
    except FileExistsError as error:
        raise StateFolderError(f"{path} is a file.", fix="Choose another folder with --state.") from error
    except OSError as error:
        raise explain(error, path / ".probe") from error
    return path


def shared_folder(state: Path) -> Path:
    """Where shared-memory files of the stack at `state` live: a folder of its own in /dev/shm, else below `state`.

    The name is derived from the resolved path, so every process of a stack finds the same one without being told.
    """
    import hashlib

    digest = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]
    memory = Path("/dev/shm")
    root = memory if os.access(memory, os.W_OK) else state
    return root / f"workbench-{digest}"
