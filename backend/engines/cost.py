"""How long one step of an engine takes: the model that the simulated engine, the what-if and `expected-latency` share.

A step's time grows with the KV tokens that its batch attends to (memory traffic) and with the prompt tokens that it computes
(arithmetic); a decode-only step of an empty engine costs the constant. Fitted to published latencies, not to a GPU of ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from backend.core.errors import UsageError


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step = base + per KV token resident in the batch + per prompt token computed in it."""

    base_s: float
    per_kv_token_s: float
    per_prefill_token_s: float

    def seconds(self, kv_tokens: int, prefill_tokens: int) -> float:
        """
        >>> round(StepCost(0.0089, 7.9e-8, 128e-6).seconds(100_000, 1000), 4)
        0.1448
        """
        return self.base_s + self.per_kv_token_s * kv_tokens + self.per_prefill_token_s * prefill_tokens


PRESETS: dict[str, StepCost] = {
    # One H20 serving Qwen3-8B in bf16: fitted to 9.08 ms ITL unloaded, 46.5 ms loaded, and a step of 8192 prompt tokens of 1.05 s.
    "h20-qwen3-8b": StepCost(0.0089, 7.9e-8, 128e-6),
    # A 0.4 M parameter model on one CPU core: 358 tokens/s alone, 1864 tokens/s with eight streams, 64 prompt tokens in 30 ms.
    "cpu-tiny": StepCost(0.0028, 2.0e-6, 4.2e-4),
}
DEFAULT_PRESET = "h20-qwen3-8b"


def preset(name: str) -> StepCost:
    """A calibrated pair of model and GPU. Raises UsageError for an unknown one."""
    try:
        return PRESETS[name]
    except KeyError:
        raise UsageError(f"There is no step-time preset {name!r}.", fix=f"Known presets: {', '.join(sorted(PRESETS))}.") from None


@dataclass(frozen=True)
class TransferCost:
    """Seconds that a prompt's KV takes from one engine to another = base + its bytes through the link."""

    base_s: float
    bytes_per_token: int
    bytes_per_s: float

    def seconds(self, tokens: int) -> float:
        """
        >>> round(TransferCost(0.003, 147_456, 40e9).seconds(8192), 4)
        0.0332
        """
        return self.base_s + self.bytes_per_token * tokens / self.bytes_per_s


class Link:
    """Transfers that share one engine's link: each begins when those before it are through."""

    def __init__(self, cost: TransferCost, *, speed: float = 1.0) -> None:
        """`speed` divides all times, as it does those of steps."""
        self._cost = cost
        self._speed = speed
        self._free_at = 0.0

    def seconds(self, now: float, tokens: int) -> float:
        """How long a transfer that begins now will take.

        >>> link = Link(TransferCost(0.5, 100, 1000.0))
        >>> link.seconds(0.0, 10), link.seconds(0.0, 10), link.seconds(5.0, 10)
        (1.5, 2.5, 1.5)
        """
        bytes_s = self._cost.bytes_per_token * tokens / self._cost.bytes_per_s / self._speed
        self._free_at = max(now, self._free_at) + bytes_s
        return self._free_at - now + self._cost.base_s / self._speed


TRANSFERS: dict[str, TransferCost] = {
    # 36 layers, 8 KV heads of 128 in bf16, over one 400 Gbit/s link at 80 %; the base is a handshake that exists already.
    "h20-qwen3-8b": TransferCost(0.003, 147_456, 40e9),
    # 2 layers, 2 KV heads of 32 in bf16 through shared memory: a decode's first token came 7 ms later than a prefill's.
    "cpu-tiny": TransferCost(0.005, 512, 1e9),
}


def transfer(name: str) -> TransferCost:
    """The KV transfer of a preset. Raises UsageError for an unknown one."""
    preset(name)
    return TRANSFERS[name]
