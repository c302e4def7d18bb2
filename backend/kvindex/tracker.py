"""One publisher's sequence: what to apply, when to ask for a replay, when to forget. Pure: numbers and bytes in, instructions out.

A replay is always asked from the last message that we have, not the one after it: a publisher that does not know that message, or has
another one under its number, is another boot of the engine. Live messages that come meanwhile are held back and follow in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

HELD_MESSAGES = 20_000
HELD_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Apply:
    payload: bytes
    live: bool


@dataclass(frozen=True, slots=True)
class Forget:
    """The rank holds nothing that we could still vouch for."""

    reason: str


@dataclass(frozen=True, slots=True)
class AskReplay:
    start: int


Instruction = Apply | Forget | AskReplay


@dataclass
class Tracker:
    """State of one source. `can_replay` is false where the engine has no replay socket."""

    can_replay: bool
    phase: Literal["waiting", "replaying", "live"] = "waiting"
    last: int = -1
    """Sequence of the newest message applied; -1: none of this boot."""
    complete: bool = False
    """Every message since the engine's start was seen."""
    gaps: int = 0
    missed: int = 0
    restarts: int = 0
    _last_payload: bytes = b""
    _held: deque[tuple[int, bytes]] = field(default_factory=deque)
    _held_bytes: int = 0
    _replayed: int = 0
    """Messages that the replay under way has brought, the one we had already among them."""
    _advanced: bool = False
    """The replay under way brought something new."""

    def connected(self) -> list[Instruction]:
        """The subscription stands, for the first time or again."""
        if self.can_replay:
            return self._ask()
        self.phase = "live"
        return []

    def check(self) -> list[Instruction]:
        """Make sure that nothing was lost at the end: a publisher that falls silent after a loss shows no gap."""
        return self._ask() if self.can_replay and self.phase == "live" else []

    def start_over(self, reason: str) -> list[Instruction]:
        """Forget and read everything again."""
        self._reset()
        return [Forget(reason), *(self._ask() if self.can_replay and self.phase != "waiting" else [])]

    def live(self, sequence: int, payload: bytes) -> list[Instruction]:
        """A message from the subscription."""
        if self.phase == "replaying" or (self.phase == "waiting" and self.can_replay):
            self._hold(sequence, payload)
            return []
        if self.last < 0 and not self.can_replay:
            self.complete = sequence == 0
            return [self._accept(sequence, payload, live=True)]
        if sequence == self.last + 1:
            return [self._accept(sequence, payload, live=True)]
        if sequence <= self.last:
            if sequence == self.last and payload == self._last_payload:
                return []
            return self._restarted(sequence, payload)
        self.gaps += 1
        if self.can_replay:
            self._hold(sequence, payload)
            return self._ask()
        return self._jump(sequence, payload, live=True)

    def replayed(self, sequence: int, payload: bytes) -> list[Instruction]:
        """A message from the replay under way."""
        if self.phase != "replaying":
            return []
        self._replayed += 1
        if sequence <= self.last:
            if sequence == self.last and payload != self._last_payload:
                return self._other_boot()
            return []
        if sequence == self.last + 1:
            if self.last < 0:
                self.complete = True
            self._advanced = True
            return [self._accept(sequence, payload, live=False)]
        if self._advanced:
            # a hole inside a replay: the publisher's queue to us was full. Go on from what we have.
            return self._ask()
        self._advanced = True
        return self._jump(sequence, payload, live=False)

    def replay_ended(self) -> list[Instruction]:
        """The end marker came."""
        if self.phase != "replaying":
            return []
        if self.last >= 0 and self._replayed == 0:
            return self._other_boot()
        if self.last < 0:
            self.complete = True
        return self._resume(stuck=not self._advanced)

    def replay_failed(self) -> list[Instruction]:
        """No answer in time: go on with what is live, and without a word about what came before."""
        if self.phase != "replaying":
            return []
        self.complete = self.complete and self.last >= 0
        return self._resume(stuck=True)

    def _ask(self) -> list[Instruction]:
        self.phase = "replaying"
        self._replayed, self._advanced = 0, False
        return [AskReplay(max(self.last, 0))]

    def _accept(self, sequence: int, payload: bytes, *, live: bool) -> Apply:
        self.last, self._last_payload = sequence, payload
        return Apply(payload, live)

    def _jump(self, sequence: int, payload: bytes, *, live: bool) -> list[Instruction]:
        """Messages are lost for good: what they removed would stay in the index for ever, so everything goes."""
        lost = sequence - self.last - 1
        self.missed += lost
        self.complete = False
        instructions: list[Instruction] = [Forget(f"{lost} messages before {sequence} are lost")] if self.last >= 0 else []
        return [*instructions, self._accept(sequence, payload, live=live)]

    def _restarted(self, sequence: int, payload: bytes) -> list[Instruction]:
        self.restarts += 1
        self._reset()
        if self.can_replay:
            self._hold(sequence, payload)
            return [Forget("the engine restarted"), *self._ask()]
        self.complete = sequence == 0
        return [Forget("the engine restarted"), self._accept(sequence, payload, live=True)]

    def _other_boot(self) -> list[Instruction]:
        self.restarts += 1
        held, held_bytes = self._held, self._held_bytes
        self._reset()
        self._held, self._held_bytes = held, held_bytes
        return [Forget("the engine restarted"), *self._ask()]

    def _resume(self, *, stuck: bool) -> list[Instruction]:
        """Back to live: what was held follows, until a gap shows in it. `stuck`: this replay brought nothing, so another one will not."""
        self.phase = "live"
        instructions: list[Instruction] = []
        held, self._held, self._held_bytes = self._held, deque(), 0
        while held:
            sequence, payload = held.popleft()
            if sequence <= self.last:
                continue
            if stuck and sequence > self.last + 1:
                self.gaps += 1
                instructions += self._jump(sequence, payload, live=True)
                continue
            instructions += self.live(sequence, payload)
            if self._replaying():
                for left in held:
                    self._hold(*left)
                break
        return instructions

    def _replaying(self) -> bool:
        return self.phase == "replaying"

    def _hold(self, sequence: int, payload: bytes) -> None:
        """Keep it for after the replay. What finds no room leaves a gap, which asks for a replay of its own."""
        self._held.append((sequence, payload))
        self._held_bytes += len(payload)
        while len(self._held) > HELD_MESSAGES or self._held_bytes > HELD_BYTES:
            self._held_bytes -= len(self._held.popleft()[1])

    def _reset(self) -> None:
        self.last, self._last_payload, self.complete = -1, b"", False
        self._held, self._held_bytes = deque(), 0


def payloads_between(instructions: Iterable[Instruction]) -> list[list[bytes] | Forget | AskReplay]:
    """Instructions with neighbouring payloads put together, so that each run is one call of the kernel."""
    runs: list[list[bytes] | Forget | AskReplay] = []
    for instruction in instructions:
        if not isinstance(instruction, Apply):
            runs.append(instruction)
        elif runs and isinstance(runs[-1], list):
            runs[-1].append(instruction.payload)
        else:
            runs.append([instruction.payload])
    return runs
