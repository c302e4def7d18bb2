"""Heads and chunks of answers: what passes, what is refused, and that packets may end anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.core.errors import WireError
from backend.gateway.framing import CHUNKED, UNTIL_CLOSE, ChunkWalker, dechunked, parse_head, without_frames

BODY = b"5\r\nhello\r\n1a;x=y\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nx-trailer: 1\r\n\r\n"


def test_a_head_is_passed_without_what_is_for_this_hop_only() -> None:
    head = parse_head(
        b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nconnection: keep-alive, x-hop\r\nX-Hop: 1\r\nkeep-alive: timeout=5\r\n"
        b"target-pod: evil\r\ncontent-type: application/json\r\ncontent-length: 12"
    )
    assert head.forward == b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\ncontent-type: application/json\r\ncontent-length: 12\r\n"
    assert (head.length, head.keep_alive, head.event_stream) == (12, True, False)


@pytest.mark.parametrize(
    ("lines", "length", "keep_alive"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked", CHUNKED, True, id="chunked"),
        pytest.param(b"HTTP/1.1 200 OK", UNTIL_CLOSE, True, id="until_close"),
        pytest.param(b"HTTP/1.1 204 No Content", 0, True, id="no_content"),
        pytest.param(b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5", 0, True, id="not_modified"),
        pytest.param(b"HTTP/1.0 200 OK\r\ncontent-length: 0", 0, False, id="http_1_0_closes"),
        pytest.param(b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0", 0, True, id="http_1_0_kept"),
        pytest.param(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0", 0, False, id="close"),
    ],
)
def test_the_length_of_a_body_is_known_from_its_head(lines: bytes, length: int, keep_alive: bool) -> None:
    head = parse_head(lines)
    assert (head.length, head.keep_alive) == (length, keep_alive)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        pytest.param(b"HTTP/2 200 OK", "bad_status_line", id="other_version"),
        pytest.param(b"HTTP/1.1 99 x", "bad_status_line", id="short_status"),
        pytest.param(b"ICY 200 OK", "bad_status_line", id="other_protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5", "bad_length", id="two_lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5", "bad_length", id="list_of_lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: +5", "bad_length", id="signed_length"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 0x5", "bad_length", id="hex_length"),
        pytest.param(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked", "bad_length", id="both"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked", "bad_length", id="two_codings"),
        pytest.param(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked", "bad_length", id="twice_chunked"),
        pytest.param(b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked", "bad_length", id="chunks_in_http_1_0"),
        pytest.param(b"HTTP/1.1 200 OK\r\na: b\r\n c", "bad_header", id="folded"),
        pytest.param(b"HTTP/1.1 200 OK\r\na : b", "bad_header", id="blank_before_colon"),
        pytest.param(b"HTTP/1.1 200 OK\r\na: b\nc: d", "bad_header", id="bare_line_feed"),
        pytest.param(b"HTTP/1.1 200 OK\r\na: b\x00", "bad_header", id="nul"),
        pytest.param(b"HTTP/1.1 200 OK\r\nno colon", "bad_header", id="no_colon"),
    ],
)
def test_heads_that_two_readers_could_read_differently_are_refused(lines: bytes, reason: str) -> None:
    with pytest.raises(WireError) as refused:
        parse_head(lines)
    assert refused.value.reason == reason


@pytest.mark.parametrize("cut", range(1, len(BODY)))
def test_a_chunked_body_may_be_split_at_any_byte(cut: int) -> None:
    walker = ChunkWalker()
    assert walker.feed(BODY[:cut]) == -1
    rest = BODY[cut:] + b"HTTP/1.1 200 next"
    assert walker.feed(rest) == len(BODY) - cut


def test_a_chunked_body_may_come_byte_by_byte() -> None:
    walker = ChunkWalker()
    ends = [walker.feed(BODY[at : at + 1]) for at in range(len(BODY))]
    assert ends == [-1] * (len(BODY) - 1) + [1]


@given(st.lists(st.binary(min_size=1, max_size=300), max_size=8), st.lists(st.integers(1, 60), min_size=1), st.binary(max_size=40))
def test_the_end_of_any_chunked_body_in_any_packets_is_found(chunks: list[bytes], sizes: list[int], surplus: bytes) -> None:
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    wire, position, turn = body + surplus, 0, 0
    walker = ChunkWalker()
    while True:
        packet = wire[position : position + sizes[turn % len(sizes)]]
        end = walker.feed(packet)
        if end >= 0:
            assert position + end == len(body)
            break
        position += len(packet)
        turn += 1
    assert dechunked(body) == b"".join(chunks)


@pytest.mark.parametrize(
    "wrong", [b"zz\r\n", b"-1\r\n", b"1_0\r\n", b" 5\r\n", b"5\r\nhelloX\r\n", b"\r\n", b"f" * 300, b"0\r\nbad trailer\r\n"]
)
def test_broken_chunks_are_refused(wrong: bytes) -> None:
    with pytest.raises(WireError):
        ChunkWalker().feed(b"1\r\na\r\n" + wrong)


def test_frames_are_taken_out_of_an_event_wherever_they_fall() -> None:
    event = b'data: {"usage":{"prompt_tokens":5}}\n\n'
    for cut in range(1, len(event)):
        parts = (event[:cut], event[cut:])
        assert without_frames(b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n").strip() == event.strip()


PAYLOADS = st.binary(min_size=1, max_size=300) | st.sampled_from([b"\r\n", b"0\r\n\r\n", b"5\r\nhello\r\n", b"a\r\n" * 40, b"data: x\n\n"])


@given(st.lists(PAYLOADS, min_size=4, max_size=40), st.booleans(), st.binary(max_size=8))
def test_a_burst_ends_where_a_walk_over_single_bytes_says(chunks: list[bytes], complete: bool, surplus: bytes) -> None:
    """Large packets take a short way; it must be the same way, whatever the payloads look like."""
    wire = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + (b"0\r\n\r\n" + surplus if complete else b"")
    bytewise, expected = ChunkWalker(), -1
    for at in range(len(wire)):
        if bytewise.feed(wire[at : at + 1]) >= 0:
            expected = at + 1
            break
    ChunkWalker().feed(wire)  # sizes are known the second time
    assert ChunkWalker().feed(wire) == expected


@pytest.mark.parametrize("wrong", [b"6\r\nhello\r\n", b"4\r\nhello\r\n", b"0\r\n\r\n", b"zz\r\nhello\r\n"])
def test_a_burst_with_one_wrong_frame_is_judged_as_without_the_short_way(wrong: bytes) -> None:
    good = b"5\r\nhello\r\n"
    walker = ChunkWalker()
    assert walker.feed(good * 300) == -1
    try:
        expected: object = ChunkWalker().feed(good + wrong + good)
    except WireError as error:
        expected = error.reason
    try:
        found: object = ChunkWalker().feed(good * 150 + wrong + good * 150)
    except WireError as error:
        found = error.reason
    assert found == (expected + 149 * len(good) if isinstance(expected, int) and expected >= 0 else expected)
