"""Numbers in a request's query."""

from __future__ import annotations

from aiohttp import web

from backend.core.errors import InvalidRequest


def whole(request: web.Request, name: str, default: int, largest: int) -> int:
    """A whole number of the query from 1 to `largest`. Raises InvalidRequest."""
    text = request.query.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= largest:
        raise InvalidRequest(f"`{name}` is {text!r}.", param=name, fix=f"Pass a whole number from 1 to {largest}.")
    return int(text)
