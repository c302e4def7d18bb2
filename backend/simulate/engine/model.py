"""Types of the simulated engine: what runs in it and what it tells. No I/O, no decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]
"""`error`: the KV that a decode was to fetch did not come."""

ExtraKeys = tuple[str, ...] | None
"""What, beside its tokens, tells a block from others: the cache salt on a prompt's first block. None: nothing."""


@dataclass(frozen=True, slots=True)
class BlockStored:
    """Full blocks of one request that entered the prefix cache in one step."""

    hashes: list[bytes]
    parent: bytes | None
    tokens: list[int]
    extra_keys: list[ExtraKeys]
    session_id: str | None = None
    cache_salt: str | None = None


@dataclass(frozen=True, slots=True)
class BlockRemoved:
    """One physical copy of a cached block was given to another request."""

    hashes: list[bytes]


@dataclass(frozen=True, slots=True)
class AllBlocksCleared:
    """The prefix cache was emptied."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


@dataclass(slots=True, eq=False)
class Sequence:
    """One request in the engine, from arrival to its last token. Times are seconds of the caller's monotonic clock."""

    request_id: str
    tokens: list[int]
    """Its prompt, to which output is appended."""
    max_tokens: int
    arrived_at: float
    limit_reason: FinishReason = "length"
    """What ends it after `max_tokens`: the caller's limit (length), or the model's own end (stop)."""
    cache_salt: str | None = None
    session_id: str | None = None
    report_hits: bool = False
    """Publish blocks that were found in the cache too (`kv_cache_report_mode: full`)."""

    hold: bool = False
    """Keep its blocks under `request_id` when it ends by its limit: somebody else will fetch them (prefill)."""
    fetch: bool = False
    """Its prompt's KV comes from another engine before it runs (decode). Cleared when it has come."""

    prompt_tokens: int = 0
    """How many of `tokens` are the prompt."""
    hashes: list[bytes] = field(default_factory=list)
    """Chained hashes of its full blocks, as far as tokens are known."""
    blocks: list[int] = field(default_factory=list)
    """Physical blocks that it holds, in order."""
    computed: int = 0
    """Tokens whose KV is in `blocks`."""
    registered: int = 0
    """Leading blocks that are in the prefix cache."""
    cached_tokens: int = 0
    """Prompt tokens found in the cache when it was first scheduled."""
    external_tokens: int = 0
    """Prompt tokens whose KV another engine computed."""
    shown_cached: int | None = None
    """What usage tells instead of `cached_tokens`; None: nothing else."""
    preemptions: int = 0
    seed: int = -1
    """What its answer is drawn from; set by the sampler when it first looks."""
    finish_reason: FinishReason | None = None
    scheduled_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens


Sampler = Callable[[Sequence], int]
"""The next token of a sequence, from what it holds so far; deterministic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """Limits of the engine; the names are vLLM's."""

    block_size: int = 64
    num_blocks: int = 16384
    """Physical blocks, the null block among them."""
    max_model_len: int = 131072
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    prefix_cache: bool = True
    """Without it nothing is found again, and nothing told."""
    tell_copies: bool = True
    """Events for every physical copy of a cached block (vLLM); else for the first to come and the last to go (a radix tree)."""
    lease_s: float = 30.0
    """Seconds that held blocks wait for somebody who fetches them."""


@dataclass(frozen=True, slots=True)
class Step:
    """What the engine computes next: the instruction to wait `seconds` and then to call `finish_step`."""

    work: list[tuple[Sequence, int]]
    """Each sequence of the batch with the number of its tokens that are computed."""
    prefill_tokens: int
    kv_tokens: int
    """Tokens whose KV the batch attends to."""
    seconds: float
    admitted: list[Sequence]
    """Those of the batch that are in it for the first time."""
    preempted: int = 0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step gave: tokens to send, requests that ended with it, events to publish before either."""

    tokens: list[tuple[Sequence, int]]
    finished: list[Sequence]
    events: list[Event]
