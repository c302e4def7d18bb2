"""Numbers and nesting that nobody can mean: a usage is then unknown, in plain and in streamed answers, and a body is refused."""

from __future__ import annotations

import json

import pytest

from backend.gateway import body, upstream_errors
from backend.gateway.answers import Problem
from backend.gateway.stream import find_usage, read_answer


@pytest.mark.parametrize("count", [-1, 2**64, 2**41, 10**400, "7", 1.5, [1], True])
@pytest.mark.parametrize("field", ["prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens"])
def test_a_strange_number_makes_the_usage_unknown(field: str, count: object) -> None:
    usage: dict[str, object] = {"prompt_tokens": 7, "completion_tokens": 1}
    usage.update({"prompt_tokens_details": {field: count}} if field == "cached_tokens" else {field: count})
    answer = json.dumps({"choices": [{"text": "x", "finish_reason": "stop"}], "usage": usage}).encode()
    assert find_usage(answer) is None
    read = read_answer(answer)
    assert read is not None
    assert read.usage is None


@pytest.mark.parametrize("count", [0, 1, 2**40])
def test_a_count_that_can_be_is_taken(count: int) -> None:
    usage = find_usage(json.dumps({"usage": {"prompt_tokens": count, "prompt_tokens_details": {"cached_tokens": count}}}).encode())
    assert usage is not None
    assert (usage.counted().prompt, usage.counted().cached) == (count, count)


DEEP = b"[" * 100_000 + b"]" * 100_000


def test_json_that_is_nested_without_end_is_refused_on_both_sides() -> None:
    for api in ("completions", "chat"):
        with pytest.raises(Problem) as refused:
            body.read(api, b'{"model":"m","prompt":"x","messages":[{}],"x":%b}' % DEEP)  # type: ignore[arg-type]
        assert (refused.value.status, "nested too deeply" in refused.value.message) == (400, True)
    assert read_answer(b'{"x":%b}' % DEEP) is None
    assert upstream_errors.normalise(503, DEEP)[0] == 503
    assert upstream_errors.message(DEEP) == "an error without a message"
