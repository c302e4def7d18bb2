"""Options of the dashboard: command line over environment over file, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from backend.launch import dashboard


@dataclass(frozen=True)
class Options:
    """What the server needs to know; `backend.core.settings.DashboardSettings` says more of each."""

    host: str = "127.0.0.1"
    port: int = 18806
    control_url: str = "http://127.0.0.1:18801"
    token_file: Path | None = None
    auth: str = "token"
    users_file: Path | None = None
    origins: tuple[str, ...] = ()
    """Further `host:port` names under which browsers reach the dashboard: of a proxy, of an ingress."""
    unused_session_ms: int = 60_000
    """A closed laptop or a broken network may come back to its session for so long."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m apps", description="The dashboard of a running stack.")
    made.add_argument("--config", type=Path, help="TOML file of settings (DashboardSettings)")
    made.add_argument("--host", help="address to listen on (127.0.0.1)")
    made.add_argument("--port", type=int, help="port to listen on (18806)")
    made.add_argument("--control-url", help="the control API (http://127.0.0.1:18801)")
    made.add_argument("--token-file", type=Path, help="file with the stack's token")
    made.add_argument("--auth", choices=("token", "basic", "none"), help="how visitors log in (token)")
    made.add_argument("--users-file", type=Path, help="JSON file of names and password hashes, for --auth basic")
    made.add_argument("--origin", action="append", default=[], help="further host:port of the browser's address bar; may be given again")
    made.add_argument("--unused-session-ms", type=int, help="milliseconds for which a lost page may come back to its session (60000)")
    made.add_argument("--hash-password", action="store_true", help="ask for a password, print its hash for a users file, and end")
    return made


def from_arguments(arguments: argparse.Namespace) -> Options:
    """Settings of file and environment with what the command line says on top. Raises ConfigError."""
    found = from_settings(dashboard.read_settings(arguments.config))
    given = {
        name: getattr(arguments, name)
        for name in ("host", "port", "control_url", "token_file", "auth", "users_file", "unused_session_ms")
        if getattr(arguments, name) is not None
    }
    return dataclasses.replace(found, **given, origins=tuple(arguments.origin))


def from_environment() -> Options:
    """For `panel serve`, which leaves us no command line."""
    return from_settings(dashboard.read_settings(None))


def from_settings(settings: dashboard.DashboardSettings) -> Options:
    return Options(
        host=settings.listen.host,
        port=settings.listen.port,
        control_url=settings.control_url,
        token_file=settings.token_file,
        auth=settings.auth,
        users_file=settings.users_file,
    )


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    return parser().parse_args(words)
