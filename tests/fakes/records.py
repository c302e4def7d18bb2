"""Decision records for tests: every field has a plausible value, each can be given."""

from __future__ import annotations

from typing import Any

from backend.api.decisions import DecisionRecord

AT = 1_790_000_000.0
"""2026-09-21 14:13:20 UTC."""


def record(number: int = 0, **given: Any) -> DecisionRecord:
    """The `number`th request: one a second from AT on, unless `at` says otherwise."""
    values: dict[str, Any] = {
        "id": f"r{number:08d}",
        "at": AT + number,
        "model": "qwen3-8b",
        "path": "/v1/completions",
        "policy": "prefix-cache",
        "reason": "prefix_match",
        "candidates": ["vllm-0", "vllm-1"],
        "terms": {"matched_tokens": [128.0, 0.0], "in_flight": [1.0, 0.0]},
        "chosen": "vllm-0",
        "pod_ip": "127.0.0.1",
        "prompt_tokens": 200,
        "block_size": 64,
        "predicted_tokens": 128,
        "index_state": "live",
        "status": 200,
        "cached_tokens": 128,
        "usage_prompt_tokens": 200,
        "completion_tokens": 16,
        "hit_class": "exact",
        "ttft_ms": 25.0,
        "total_ms": 120.0,
    }
    return DecisionRecord(**{**values, **given})


def records(count: int, first: int = 0, **given: Any) -> list[DecisionRecord]:
    return [record(number, **given) for number in range(first, first + count)]
