"""What a stream's beginning and its end say: whether a pod is draining, whether it failed, when tokens came. Packets may end anywhere."""

from __future__ import annotations

import json

import pytest

from backend.gateway.stream import StreamNotes
from tests.fakes.upstream import DELTA, DONE, ROLE, TOKEN

ABORT_TEXT = 'data: {"choices":[{"index":0,"text":"","finish_reason":"abort"}]}\n\n'
ABORT_CHAT = 'data: {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "abort"}]}\n\n'
ERROR = 'data: {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}\n\n'
USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":0}}\n\n'


def chunked(events: list[str]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(event), event.encode()) for event in events) + b"0\r\n\r\n"


def read(wire: bytes, size: int) -> StreamNotes:
    notes = StreamNotes()
    for at in range(0, len(wire), size):
        notes.packet(wire[at : at + size], float(at + 1))
    return notes


OPENINGS = [
    ("a_token", [TOKEN], "token"),
    ("a_role_then_a_token", [ROLE, DELTA], "token"),
    ("a_role_alone", [ROLE], ""),
    ("abort_at_once", [ABORT_TEXT, USAGE], "abort"),
    ("abort_behind_the_role", [ROLE, ABORT_CHAT], "abort"),
    ("abort_with_a_last_token", [ABORT_TEXT.replace('""', '"x"')], "token"),
    ("text_that_speaks_of_abort", [TOKEN.replace(" token", r"\"finish_reason\":\"abort\"")], "token"),
    ("an_end_without_a_token", ['data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}\n\n'], "token"),
    ("an_error", [ERROR], "error"),
    ("a_comment", [": ping\n\n", TOKEN], "comment"),
    ("usage_alone", [USAGE, DONE], ""),
]


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(("events", "expected"), [row[1:] for row in OPENINGS], ids=[row[0] for row in OPENINGS])
def test_the_first_event_that_says_anything_decides_the_opening(events: list[str], expected: str, line_end: str, size: int) -> None:
    assert read(chunked([event.replace("\n", line_end) for event in events]), size).opening == expected


@pytest.mark.parametrize("size", [1, 3, 7, 50, 10_000])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("framed", [True, False])
def test_tokens_are_counted_however_events_end_and_packets_split(framed: bool, line_end: str, size: int) -> None:
    events = [event.replace("\n", line_end) for event in [ROLE, *[DELTA] * 50]]
    wire = chunked(events) if framed else "".join(events).encode()
    notes = read(wire, size)
    assert notes.events == 50
    first_ends = wire.index(b" token") + DELTA.index("\n") - DELTA.index(" token")
    assert first_ends - size <= notes.token_at <= first_ends + size + 4
    assert notes.last_at >= len(wire) - len(chunked(events[-1:])) - size - 5


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize(
    ("events", "aborted", "error"),
    [
        pytest.param([TOKEN, TOKEN, DONE], False, "", id="a_usual_end"),
        pytest.param([TOKEN, ABORT_TEXT, DONE], True, "", id="aborted_in_the_middle"),
        pytest.param([DELTA, ABORT_CHAT, USAGE, DONE], True, "", id="aborted_with_usage"),
        pytest.param([TOKEN, ERROR, DONE], False, "engine died", id="an_error_event"),
        pytest.param([TOKEN, ERROR.replace("\n", "\r\n"), DONE], False, "engine died", id="an_error_event_with_returns"),
        pytest.param(
            [TOKEN, 'data: {"object":"error","message":"older spelling"}\n\n', DONE], False, "older spelling", id="a_flat_error_event"
        ),
        pytest.param([TOKEN, 'data: {"error": "a text"}\n\n', DONE], False, "a text", id="an_error_text"),
        pytest.param([TOKEN, 'data: {"error": {"code": 5}}\n\n'], False, "without a message", id="an_error_without_a_message"),
        pytest.param([TOKEN.replace(" token", json.dumps('\ndata: {"error": {}}')[1:-1]), DONE], False, "", id="text_like_an_error"),
        pytest.param([TOKEN.replace(" token", r"\"finish_reason\": \"abort\""), DONE], False, "", id="text_like_an_abort"),
        pytest.param([TOKEN, 'data: {"error": null, "choices": []}\n\n', DONE], False, "", id="no_error"),
        pytest.param([TOKEN] * 500 + [ERROR, DONE], False, "engine died", id="a_long_stream"),
    ],
)
def test_the_end_of_a_stream_tells_how_it_went(events: list[str], aborted: bool, error: str, size: int) -> None:
    ending = read(chunked(events), size).ending()
    assert ending.aborted is aborted
    assert error in ending.error
    assert bool(ending.error) == bool(error)
