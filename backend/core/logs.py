"""Text logs: one line an event to standard error, UTC, process name first. Tokens and prompts never reach them."""

from __future__ import annotations

import logging
import re
import sys
import time

_SECRET = re.compile(r"(?i)(bearer\s+|token=|password=|authorization:\s*(?!bearer))(\S+)")


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)

    def format(self, record: logging.LogRecord) -> str:
        return _SECRET.sub(r"\1***", super().format(record))


def configure(process: str, *, level: str = "INFO") -> None:
    """Log to standard error; call once, first thing in a `__main__`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"%(asctime)s.%(msecs)03dZ {process} %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore", "aiohttp.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
