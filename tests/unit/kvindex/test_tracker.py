"""Sequence chaos, case by case: what is applied, asked for and forgotten. Not here: sockets (tests/behaviour)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.kvindex.tracker import Apply, AskReplay, Forget, Instruction, Tracker


def told(instructions: list[Instruction]) -> list[object]:
    """Short form: payload as text, `?3` for a replay from 3, `forget`."""
    short: list[object] = []
    for instruction in instructions:
        if isinstance(instruction, Apply):
            short.append(instruction.payload.decode())
        else:
            short.append(f"?{instruction.start}" if isinstance(instruction, AskReplay) else "forget")
    return short


class Play:
    """Drives a tracker with short words: `l3` live message 3, `r3` replayed message 3, `end`, `failed`, `connected`, `check`.

    A letter behind the number names the boot: `l3b`."""

    def __init__(self, *, can_replay: bool = True) -> None:
        self.tracker = Tracker(can_replay)

    def __call__(self, words: str) -> list[object]:
        instructions: list[Instruction] = []
        for word in words.split():
            instructions += self._one(word)
        return told(instructions)

    def _one(self, word: str) -> list[Instruction]:
        plain = {
            "connected": self.tracker.connected,
            "end": self.tracker.replay_ended,
            "failed": self.tracker.replay_failed,
            "check": self.tracker.check,
        }
        if word in plain:
            return plain[word]()
        number = int(word[1:].rstrip("ab"))
        payload = word[1:].encode()
        return self.tracker.live(number, payload) if word[0] == "l" else self.tracker.replayed(number, payload)


CASES = [
    # id                                              what happens                             what is done
    ("a_start_replays_everything_first", "connected r0 r1 l2 end", ["?0", "0", "1", "2"]),
    ("live_messages_wait_for_the_replay", "connected l1 l2 r0 r1 end l3", ["?0", "0", "1", "2", "3"]),
    ("messages_in_both_are_applied_once", "connected l0 l1 r0 r1 r2 end l2 l3", ["?0", "0", "1", "2", "3"]),
    ("a_gap_asks_for_what_is_missing", "connected end l0 l1 l4 r1 r2 r3 end", ["?0", "0", "1", "?1", "2", "3", "4"]),
    ("a_gap_right_after_a_replay_asks_again", "connected r0 l3 end r0 r1 r2 end", ["?0", "0", "?0", "1", "2", "3"]),
    ("a_replay_that_begins_too_late_forgets", "connected end l0 l1 l5 r4 end", ["?0", "0", "1", "?1", "forget", "4", "5"]),
    ("a_replay_without_the_missing_part_gives_up", "connected end l0 l3 r0 end", ["?0", "0", "?0", "forget", "3"]),
    ("a_hole_inside_a_replay_is_asked_again", "connected r0 r1 r4 r1 r2 r3 r4 end", ["?0", "0", "1", "?1", "2", "3", "4"]),
    ("a_sequence_that_goes_back_is_another_boot", "connected end l0a l1a l0b r0b end l1b", ["?0", "0a", "1a", "forget", "?0", "0b", "1b"]),
    ("the_same_message_twice_is_no_restart", "connected end l0 l1 l1 l2", ["?0", "0", "1", "2"]),
    ("a_reconnect_asks_from_the_last_message", "connected end l0 l1 connected r1 r2 end", ["?0", "0", "1", "?1", "2"]),
    ("one_that_lacks_it_is_another_boot", "connected end l0 l1 connected end r0 end", ["?0", "0", "1", "?1", "forget", "?0", "0"]),
    ("so_is_another_message", "connected end l0a l1a connected r1b r0b r1b end", ["?0", "0a", "1a", "?1", "forget", "?0", "0b", "1b"]),
    ("no_answer_to_the_first_replay_goes_on_live", "connected l5 failed l6", ["?0", "5", "6"]),
    ("no_answer_after_a_gap_forgets", "connected end l0 l3 failed", ["?0", "0", "?0", "forget", "3"]),
    ("a_check_brings_what_was_lost_at_the_end", "connected end l0 check r0 r1 end", ["?0", "0", "?0", "1"]),
    ("before_the_connection_is_known_messages_wait", "l0 l1 connected r0 r1 end", ["?0", "0", "1"]),
]  # fmt: skip


@pytest.mark.parametrize(("words", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_the_tracker(words: str, expected: list[object]) -> None:
    assert Play()(words) == expected


WITHOUT_REPLAY = [
    ("the_first_message_begins", "connected l7 l8", ["7", "8"]),
    ("a_gap_forgets", "connected l7 l9", ["7", "forget", "9"]),
    ("going_back_forgets", "connected l7 l0", ["7", "forget", "0"]),
]


@pytest.mark.parametrize(("words", "expected"), [case[1:] for case in WITHOUT_REPLAY], ids=[case[0] for case in WITHOUT_REPLAY])
def test_the_tracker_without_a_replay_socket(words: str, expected: list[object]) -> None:
    assert Play(can_replay=False)(words) == expected


def test_gaps_missed_messages_and_restarts_are_counted() -> None:
    play = Play()
    play("connected end l0 l1 l5 r4 end l0b")
    assert (play.tracker.gaps, play.tracker.missed, play.tracker.restarts) == (1, 2, 1)


def test_completeness_is_known() -> None:
    play = Play()
    play("connected r0 r1 end")
    assert play.tracker.complete
    play("l9 r8 end")
    assert not play.tracker.complete


def test_an_ordered_start_over_forgets_and_replays() -> None:
    play = Play()
    play("connected r0 end")
    instructions = play.tracker.start_over("pod restarted")
    assert [type(instruction) for instruction in instructions] == [Forget, AskReplay]


def test_what_is_held_over_a_restart_still_counts_against_the_room_for_it() -> None:
    play = Play()
    play("connected end l0a connected l1b l2b end")
    assert len(play.tracker._held) == 2
    assert play.tracker._held_bytes == sum(len(payload) for _, payload in play.tracker._held)


@given(st.lists(st.sampled_from(["lose", "live", "twice", "reconnect", "restart"]), max_size=40))
def test_whatever_is_lost_the_result_is_this_boot_in_order(happenings: list[str]) -> None:
    """An engine that keeps all its messages: after the last replay, what we applied since the last forget is exactly its history."""
    tracker = Tracker(can_replay=True)
    boot, history, applied = 0, [], []

    def follow(instructions: list[Instruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, Apply):
                applied.append(instruction.payload)
            elif isinstance(instruction, Forget):
                applied.clear()
            else:
                for at in range(instruction.start, len(history)):
                    replayed = tracker.replayed(at, history[at])
                    follow(replayed)
                    if any(isinstance(part, AskReplay) for part in replayed):
                        return
                follow(tracker.replay_ended())

    follow(tracker.connected())
    for happening in happenings:
        if happening == "restart":
            # a process that goes takes its connection along
            boot, history = boot + 1, []
            follow(tracker.connected())
        elif happening == "reconnect":
            follow(tracker.connected())
        else:
            history.append(f"{boot}:{len(history)}".encode())
            for _ in range({"lose": 0, "live": 1, "twice": 2}[happening]):
                follow(tracker.live(len(history) - 1, history[-1]))
    follow(tracker.connected())
    assert applied == history
