"""Token ids of a prompt: straight from the body, or from an engine's own tokenizer, remembered.

A failure is an answer (no tokens, with a reason), never an error of the request: the decision then falls back and says so.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from backend.core.errors import UsageError, WireError
from backend.engines.base import adapter
from backend.gateway.framing import CHUNKED, ResponseHead, dechunked
from backend.gateway.upstream import FailureKind, PodPool, UpstreamConnection

TokenIds = NDArray[np.uint32]

CACHE_BYTES = 32 * 2**20
"""Token ids remembered, by prompt: a conversation's next turn is a new prompt, but retries and benchmarks repeat."""
ANSWER_BYTES = 64 * 2**20

_decode = msgspec.json.Decoder().decode


class TokenizeFailed(Exception):
    """`reason`: tokenize_failed, tokenize_timeout, tokenize_unsupported."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class Tokenizer:
    """Asks engines and remembers their answers up to CACHE_BYTES."""

    def __init__(self, *, timeout_s: float, connect_timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._cache: OrderedDict[bytes, TokenIds] = OrderedDict()
        self._bytes = 0

    def remembered(self, key: bytes) -> TokenIds | None:
        tokens = self._cache.get(key)
        if tokens is not None:
            self._cache.move_to_end(key)
        return tokens

    async def ask(self, pool: PodPool, engine: str, body: bytes, key: bytes) -> TokenIds:
        """Token ids of the prompt or messages in the request `body`. Raises TokenizeFailed."""
        try:
            speaking = adapter(engine)
            path, asked = speaking.tokenize_request(_decode(body))
            async with asyncio.timeout(self._timeout_s):
                answer = await self._post(pool, path, asked)
            tokens = np.asarray(speaking.tokenize_response(answer), np.uint32)
        except TimeoutError as error:
            raise TokenizeFailed("tokenize_timeout") from error
        except UsageError as error:
            raise TokenizeFailed("tokenize_unsupported", error.message) from error
        except (OSError, WireError, msgspec.MsgspecError, ValueError, OverflowError) as error:
            raise TokenizeFailed("tokenize_failed", str(error)) from error
        self._remember(key, tokens)
        return tokens

    def _remember(self, key: bytes, tokens: TokenIds) -> None:
        if key in self._cache or tokens.nbytes > CACHE_BYTES // 4:
            return
        self._cache[key] = tokens
        self._bytes += tokens.nbytes + 200
        while self._bytes > CACHE_BYTES:
            _, oldest = self._cache.popitem(last=False)
            self._bytes -= oldest.nbytes + 200

    async def _post(self, pool: PodPool, path: str, body: bytes) -> bytes:
        for _ in range(2):
            connection = pool.take()
            reused = connection is not None
            if connection is None:
                connection = await pool.connect(self._connect_timeout_s)
            collector = _Collector(connection)
            head = (
                f"POST {path} HTTP/1.1\r\nhost: {pool.address}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            ).encode()
            connection.send((head,), body, collector)
            try:
                return await collector.result
            except ConnectionResetError:
                # An idle connection that the engine closed meanwhile; a fresh one tells more.
                if not reused:
                    raise
            finally:
                collector.cancel()
        raise ConnectionResetError("closed twice")


def cache_key(model: str, *parts: Any) -> bytes:
    digest = hashlib.blake2b(model.encode("utf-8", "replace"), digest_size=16)
    for part in parts:
        digest.update(b"\0")
        digest.update(part)
    return digest.digest()


class _Collector:
    """A sink that gathers a small answer into one future."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection: UpstreamConnection | None = connection
        self._parts: list[bytes] = []
        self._size = 0
        self._head: ResponseHead | None = None
        self.result: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        if self._connection is not None:
            self._connection.cancel()
            self._connection = None

    def on_head(self, head: ResponseHead, data: bytes, ended: bool) -> None:
        self._head = head
        self.on_data(data, ended)

    def on_data(self, data: bytes, ended: bool) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > ANSWER_BYTES:
            self.cancel()
            self._fail(WireError("tokenize", "the token list is too large"))
        elif ended:
            self._connection = None
            self._complete()

    def on_failure(self, kind: FailureKind, detail: str) -> None:
        self._connection = None
        self._fail(ConnectionResetError(detail) if kind == "reset" else WireError("tokenize", detail))

    def _complete(self) -> None:
        head = self._head
        body = b"".join(self._parts)
        if head is None or head.status != 200:
            self._fail(WireError("tokenize", f"/tokenize answered {head.status if head else 0}"))
        elif not self.result.done():
            self.result.set_result(dechunked(body) if head.length == CHUNKED else body)

    def _fail(self, error: Exception) -> None:
        if not self.result.done():
            self.result.set_exception(error)
