"""What a decision is made of, and what a request turned out to be: types without I/O.

Plain lists, not arrays: with the dozens of candidates that a model has, Python's own sums and comparisons are quicker than numpy's
call overhead (three calls cost more than scoring eight pods).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from backend.core.errors import TransientError

IndexState = Literal["live", "stale", "absent"]
TokenCount = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
"""As an engine may report it: counters add these up, and a negative or endless number would spoil them for good."""


class NoCandidate(TransientError):
    """No pod can take this request now."""


class RequestView(msgspec.Struct, frozen=True, gc=False):
    """What a policy may know of a request. `random` (0 <= random < 1) is drawn by the caller, so that the decision can be taken again."""

    random: float = 0.0
    prompt_tokens: int = 0
    """0: the prompt was not tokenized."""
    matched_tokens: Sequence[int] | None = None
    """Prefix hit of each candidate, in their order; None: no index could be asked."""
    index_problem: str = ""
    """Why there are no matches, from a closed list; becomes the reason of a degraded decision."""


class FleetView(msgspec.Struct, frozen=True, gc=False):
    """The candidates of one request at one moment."""

    candidates: Sequence[str]
    in_flight: Sequence[int]
    """Requests on each candidate, of all workers, this one not counted."""


class Decision(msgspec.Struct, frozen=True, gc=False):
    """`pod` is an index into the candidates; each score term has one value a candidate. `inputs` are the arguments of `choose`."""

    policy: str
    pod: int
    reason: str
    terms: dict[str, Sequence[float]]
    """May be the very sequences of `inputs`: nobody changes either."""
    inputs: tuple[RequestView, FleetView, object]


class PairView(FleetView, frozen=True, gc=False, kw_only=True):
    """The candidates of a model whose prompts are computed by other pods than its answers: `candidates` are the decode pods."""

    prefill: FleetView
    """`matched_tokens` of the request are theirs."""
    groups: Sequence[Sequence[str]]
    """Of each decode candidate: the revisions of its RoleSet that it belongs to (several where a revision left its role as it was)."""
    prefill_groups: Sequence[Sequence[str]]
    """A pair has one in common."""


class PairDecision(Decision, frozen=True, gc=False, kw_only=True):
    """`pod` and `terms` are the decode pod's."""

    prefill: int
    """Index into the prefill candidates."""
    prefill_terms: dict[str, Sequence[float]]
    group: str
    """RoleSet and revision that both belong to."""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """One alternative of an engine's answer; only what the gateway looks at."""

    finish_reason: str | None = None


class PromptDetails(msgspec.Struct, frozen=True, gc=False):
    cached_tokens: TokenCount | None = None


class Counted(msgspec.Struct, frozen=True, gc=False):
    """What an engine said of a request, in tokens; None where it said nothing."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts as engines report them; `input_tokens` and `output_tokens` are the newer spelling."""

    prompt_tokens: TokenCount | None = None
    completion_tokens: TokenCount | None = None
    input_tokens: TokenCount | None = None
    output_tokens: TokenCount | None = None
    total_tokens: TokenCount | None = None
    prompt_tokens_details: PromptDetails | None = None
    input_tokens_details: PromptDetails | None = None

    def counted(self) -> Counted:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        details = self.prompt_tokens_details or self.input_tokens_details
        return Counted(
            prompt if prompt is not None else self.input_tokens,
            completion if completion is not None else self.output_tokens,
            details.cached_tokens if details is not None else None,
        )


class Answer(msgspec.Struct, frozen=True, gc=False):
    """A whole, non-streamed answer of an engine; only what the gateway looks at."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: msgspec.Raw | None = None
