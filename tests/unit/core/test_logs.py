"""Secrets never reach a log line."""

from __future__ import annotations

import logging

import pytest

from backend.core import logs


@pytest.mark.parametrize("line", ["Authorization: Bearer abc123", "GET /login?token=abc123", "password=abc123"])
def test_a_secret_is_masked(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.configure("test")
        logging.getLogger("test").info("%s", line)
        assert "abc123" not in capsys.readouterr().err
    finally:
        root.handlers[:] = before
        root.setLevel(level)
