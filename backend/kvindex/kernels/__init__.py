"""Compiled kernels: when they are there, and how to get them. Importing this package costs nothing; numba comes with `load`.

Until `ready()` the plain-Python path serves with the same answers. Compiled code is kept on disk (`NUMBA_CACHE_DIR`), below a folder
named after the kernels' sources: numba looks only at the file of the outermost function, and a helper that changed in another file
would otherwise go on living in an old compilation.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_READING = ("match", "numbers")
_WRITING = ("ingest", "private", "sweep")
_lock = threading.Lock()
_loaded: dict[bool, SimpleNamespace] = {}


def ready(*, writing: bool = False) -> bool:
    """Whether look-ups (with `writing`: everything) are served by compiled code."""
    return writing in _loaded


def warm(*, writing: bool = True) -> None:
    """Load the kernels, compiling what the disk has not (many seconds): call it in a thread. Readers need `writing=False` only."""
    load()
    if writing:
        load_writing()


def load() -> Any:
    """The kernels of a reader as attributes. Blocks until they are there: under half a second once compiled."""
    return _loaded.get(False) or _load(False, _READING)


def load_writing() -> Any:
    """Every kernel, the writer's too."""
    return _loaded.get(True) or _load(True, _READING + _WRITING)


def _load(writing: bool, modules: tuple[str, ...]) -> SimpleNamespace:
    with _lock:
        if writing not in _loaded:
            _use_own_cache_folder()
            found: dict[str, object] = {}
            for name in modules:
                module = importlib.import_module(f"{__name__}.{name}")
                found.update({kernel: _compiled(getattr(module, kernel)) for kernel in module.__all__})
            _loaded[writing] = SimpleNamespace(**found)
        return _loaded[writing]


def _compiled(kernel: Any) -> Any:
    """The compiled code of a kernel with one signature. Numba's own door would look at the type of each argument first, to choose among
    signatures; what cannot be converted is refused here too."""
    (only,) = kernel.overloads.values()
    return only.entry_point


def _use_own_cache_folder() -> None:
    """Point numba's disk cache below NUMBA_CACHE_DIR, where one is given; else it stays beside the sources."""
    root = os.environ.get("NUMBA_CACHE_DIR")
    if not root:
        return
    import numba

    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in (*sorted(here.glob("*.py")), here.parent / "layout.py", here.parent / "hashing.py", here.parent / "cursor.py"):
        digest.update(source.read_bytes())
    numba.config.CACHE_DIR = str(Path(root) / f"kvindex-{digest.hexdigest()[:12]}")
