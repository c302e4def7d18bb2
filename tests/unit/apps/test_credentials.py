"""Tokens, one-time codes and passwords, without HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from apps.core.credentials import CODE_LIFE_S, TRIES, TRIES_WINDOW_S, Credentials, hash_password, read_users
from workbench.errors import ConfigError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_code_works_once() -> None:
    credentials = Credentials(token="t")
    code = credentials.new_code()
    assert [credentials.redeem(code), credentials.redeem(code)] == [True, False]


def test_a_code_dies_of_age() -> None:
    clock = Clock()
    credentials = Credentials(token="t", clock=clock)
    code = credentials.new_code()
    clock.now += CODE_LIFE_S
    assert not credentials.redeem(code)


def test_codes_that_nobody_used_are_forgotten() -> None:
    clock = Clock()
    credentials = Credentials(token="t", clock=clock)
    for _ in range(50):
        credentials.new_code()
        clock.now += CODE_LIFE_S / 10
    assert len(credentials._codes) <= 11


@pytest.mark.parametrize(("secret", "user"), [("t0ken", "operator"), (" t0ken\n", "operator"), ("", None), ("t0ke", None), ("t0kén", None)])
def test_the_token_is_compared_whole(secret: str, user: str | None) -> None:
    assert Credentials(token="t0ken").check("", secret) == user


def test_without_a_token_nothing_is_the_token() -> None:
    assert not Credentials(users={}).is_token("")


def test_wrong_tries_are_slowed_down_for_a_minute() -> None:
    clock = Clock()
    credentials = Credentials(token="t", clock=clock)
    for _ in range(TRIES):
        assert not credentials.throttled()
        credentials.check("", "wrong")
    assert credentials.throttled()
    clock.now += TRIES_WINDOW_S
    assert not credentials.throttled()


def test_users_log_in_with_their_own_password() -> None:
    credentials = Credentials(users={"alice": hash_password("a"), "bob": hash_password("b")})
    assert credentials.check("alice", "a") == "alice"
    assert [credentials.check(*pair) for pair in (("alice", "b"), ("nobody", "a"), ("", ""))] == [None, None, None]


def test_the_cookie_secret_survives_a_restart_and_changes_with_the_token() -> None:
    assert Credentials(token="a").cookie_secret() == Credentials(token="a").cookie_secret() != Credentials(token="b").cookie_secret()
    assert "a-long-token" not in Credentials(token="a-long-token").cookie_secret()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[]", "names and password hashes"),
        ("{}", "names and password hashes"),
        ('{"alice": "secret"}', "not a hash"),
    ],
    ids=["broken", "a_list", "empty", "password_in_clear"],
)
def test_a_users_file_that_cannot_be_used_says_why(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "users.json").write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_users(tmp_path / "users.json")


def test_a_users_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "users.json").write_text(json.dumps({"alice": hash_password("a")}))
    assert list(read_users(tmp_path / "users.json")) == ["alice"]
