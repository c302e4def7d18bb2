"""How long to wait before trying again."""

from __future__ import annotations

import random
from dataclasses import dataclass

_LARGEST_EXPONENT = 60
"""2**60 times any delay is beyond every cap; a larger power would overflow a float in the end."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays in seconds that double from `first_s` to `longest_s`."""

    first_s: float = 0.8
    longest_s: float = 30.0

    def delay(self, failures: int) -> float:
        """After `failures` failures in a row (1 is the first): without chance, for one key's own retries."""
        return min(self.first_s * 2.0 ** min(max(failures - 1, 0), _LARGEST_EXPONENT), self.longest_s)

    def jittered(self, failures: int, chance: float | None = None) -> float:
        """Between half and the whole of `delay`, so that clients which a dead server left together do not come back together."""
        part = random.random() if chance is None else chance
        return self.delay(failures) * (0.5 + 0.5 * part)
