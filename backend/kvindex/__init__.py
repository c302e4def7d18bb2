"""Which pod holds which prefix: KV events in, prefix index out.

The public names are loaded when first used, so that importing the package costs nothing and numba comes last of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backend.kvindex.index import PrefixIndex
    from backend.kvindex.matches import Matches
    from backend.kvindex.reader import IndexReader
    from backend.kvindex.result import IngestResult
    from backend.kvindex.wire import Batch, Event, decode_batch

__all__ = ["Batch", "Event", "IndexReader", "IngestResult", "Matches", "PrefixIndex", "decode_batch"]

_HOME = {
    "Batch": "wire",
    "Event": "wire",
    "decode_batch": "wire",
    "IndexReader": "reader",
    "Matches": "matches",
    "PrefixIndex": "index",
    "IngestResult": "result",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
