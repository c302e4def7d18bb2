"""Request traces: reads Mooncake's JSON lines and makes the prompts that they stand for. Sends nothing.

A trace has no text. A line is `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}`, one hash id a
block of 512 prompt tokens (the last block may be shorter). Equal ids mean equal blocks *and* equal blocks before them, so whoever
gives every id its own tokens rebuilds exactly the sharing of the original (Mooncake, FAST'25).
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from backend.core.errors import ConfigError, NotFound

BLOCK_TOKENS = 512
FIRST_TOKEN = 256
"""Lower ids are bytes and special tokens in many vocabularies."""
VOCABULARY = 32_000
"""Ids stay below this: valid for every common model's vocabulary."""
PACKAGED = Path(__file__).resolve().parents[1] / "manifests" / "traces"

_WORDS = struct.Struct(f"<{BLOCK_TOKENS}I")


class TraceRequest(msgspec.Struct, frozen=True):
    """One line of a trace."""

    timestamp: float
    """Arrival, milliseconds from the trace's beginning."""
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


class Ceiling(msgspec.Struct, frozen=True):
    """What an endless cache would find: every block seen before, at any time, on any pod."""

    blocks: int = 0
    hit_blocks: int = 0
    tokens: int = 0
    hit_tokens: int = 0

    @property
    def rate(self) -> float:
        """Share of blocks, the figure published with the traces."""
        return self.hit_blocks / self.blocks if self.blocks else 0.0

    @property
    def token_rate(self) -> float:
        """Share of prompt tokens: what engines count."""
        return self.hit_tokens / self.tokens if self.tokens else 0.0


class CeilingCounter:
    """Counts the ceiling of requests given one by one. Memory: the distinct ids."""

    def __init__(self) -> None:
        self._longest: dict[int, int] = {}
        self._blocks = self._hit_blocks = self._tokens = self._hit_tokens = 0

    def add(self, request: TraceRequest) -> None:
        left = request.input_length
        for hash_id in request.hash_ids:
            tokens = min(BLOCK_TOKENS, left)
            left -= tokens
            known = self._longest.get(hash_id)
            if known is not None:
                self._hit_blocks += 1
                self._hit_tokens += min(known, tokens)
            if known is None or tokens > known:
                self._longest[hash_id] = tokens
            self._blocks += 1
            self._tokens += tokens

    def result(self) -> Ceiling:
        return Ceiling(self._blocks, self._hit_blocks, self._tokens, self._hit_tokens)


def ceiling(requests: Iterable[TraceRequest]) -> Ceiling:
    """Hit rate of `requests` with an endless cache, in their order.

    >>> shared = TraceRequest(0, 1024, 10, (1, 2))
    >>> ceiling([shared, shared]).rate
    0.5
    """
    counter = CeilingCounter()
    for request in requests:
        counter.add(request)
    return counter.result()


def find(name: str | Path) -> Path:
    """The file of a trace: a path, or the name of a packaged one. Raises NotFound with the names there are."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    for suffix in (".jsonl", ".jsonl.gz"):
        if (packaged := PACKAGED / f"{name}{suffix}").is_file():
            return packaged
    raise NotFound(f"No trace {str(name)!r}.", fix=f"Give the path of a JSON lines file, or one of: {', '.join(packaged_names())}.")


def packaged_names() -> list[str]:
    """Names of the traces that come with this package."""
    return sorted(path.name.partition(".jsonl")[0] for path in PACKAGED.glob("*.jsonl*"))


def read_mooncake(path: Path, limit: int | None = None, *, offset: int = 0) -> Iterator[TraceRequest]:
    """The requests of a file (`.gz` too), one by one, from number `offset` on and at most `limit`.

    Raises ConfigError that names file and line for anything that is not such a trace.
    """
    decoder = msgspec.json.Decoder(TraceRequest)
    before = float("-inf")
    given = 0
    with _open(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            if limit is not None and given >= limit:
                return
            if not line.strip():
                continue
            request = _decode(decoder, line, path, number)
            if request.timestamp < before:
                raise ConfigError("arrives before the request above it", file=str(path), line=number, field="timestamp")
            before = request.timestamp
            if number > offset:
                given += 1
                yield request


def shortened(request: TraceRequest, longest: int) -> TraceRequest:
    """The beginning of `request`'s prompt, `longest` tokens at most; what it shares with others there stays shared.

    >>> shortened(TraceRequest(0, 1500, 10, (1, 2, 3)), 600)
    TraceRequest(timestamp=0, input_length=600, output_length=10, hash_ids=(1, 2))
    """
    if request.input_length <= longest:
        return request
    return msgspec.structs.replace(request, input_length=longest, hash_ids=request.hash_ids[: -(-longest // BLOCK_TOKENS)])


def _open(path: Path) -> BinaryIO | gzip.GzipFile:
    try:
        return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=str(path)) from error


def _lines(file: BinaryIO | gzip.GzipFile, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (OSError, EOFError) as error:
        raise ConfigError(f"cannot be read: {error}", file=str(path)) from error


def _decode(decoder: msgspec.json.Decoder[TraceRequest], line: bytes, path: Path, number: int) -> TraceRequest:
    try:
        request = decoder.decode(line)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"is not a request of a Mooncake trace: {error}",
            file=str(path),
            line=number,
            fix='A line is {"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}.',
        ) from error
    if request.input_length < 1 or request.output_length < 0 or request.timestamp < 0:
        raise ConfigError("has a length or time below what can be", file=str(path), line=number)
    if len(request.hash_ids) != -(-request.input_length // BLOCK_TOKENS):
        raise ConfigError(
            f"has {len(request.hash_ids)} hash ids for {request.input_length} tokens; blocks of {BLOCK_TOKENS} need "
            f"{-(-request.input_length // BLOCK_TOKENS)}",
            file=str(path),
            line=number,
            field="hash_ids",
        )
    return request


def block_tokens(hash_id: int, vocabulary: int = VOCABULARY) -> list[int]:
    """The 512 token ids that stand for `hash_id`, the same on every machine and in every run.

    The 512 little-endian 32-bit words of SHAKE-128("mooncake:<hash id>"), each taken into [256, vocabulary).

    >>> block_tokens(0)[:4]
    [25142, 15510, 13777, 26785]
    """
    digest = hashlib.shake_128(b"mooncake:%d" % hash_id).digest(_WORDS.size)
    span = vocabulary - FIRST_TOKEN
    return [FIRST_TOKEN + word % span for word in _WORDS.unpack(digest)]


def prompt_tokens(request: TraceRequest, vocabulary: int = VOCABULARY) -> list[int]:
    """The prompt of `request`: `input_length` token ids."""
    tokens: list[int] = []
    for hash_id in request.hash_ids:
        tokens += block_tokens(hash_id, vocabulary)
    return tokens[: request.input_length]


class PromptEncoder:
    """Prompts as JSON text, from pieces that are encoded once a hash id. Keeps the most recently used `kept_blocks` (3 KB each)."""

    def __init__(self, vocabulary: int = VOCABULARY, kept_blocks: int = 8_192) -> None:
        if vocabulary <= FIRST_TOKEN:
            raise ConfigError(f"{vocabulary} leaves no token ids; more than {FIRST_TOKEN} are needed", field="vocabulary")
        self.vocabulary = vocabulary
        self.kept_blocks = kept_blocks
        self._pieces: dict[int, bytes] = {}

    def encode(self, request: TraceRequest) -> bytes:
        """`[1,2,3]` of all prompt tokens."""
        *whole, last = request.hash_ids
        pieces = [self._piece(hash_id) for hash_id in whole]
        rest = request.input_length - BLOCK_TOKENS * len(whole)
        if rest == BLOCK_TOKENS:
            pieces.append(self._piece(last))
        else:
            pieces.append(msgspec.json.encode(block_tokens(last, self.vocabulary)[:rest])[1:-1])
        return b"[" + b",".join(pieces) + b"]"

    def _piece(self, hash_id: int) -> bytes:
        piece = self._pieces.pop(hash_id, None)
        if piece is None:
            piece = msgspec.json.encode(block_tokens(hash_id, self.vocabulary))[1:-1]
            if len(self._pieces) >= self.kept_blocks:
                del self._pieces[next(iter(self._pieces))]
        self._pieces[hash_id] = piece
        return piece
