"""What is executed for a pod: an engine's row of the command table, filled in, and the pod's own flags behind it. Pure.

Never a shell: a command is a list. The environment is a clean one, so that nothing of the user's session leaks into a pod.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from backend.core.errors import ConfigError
from backend.localkube.runtime.addresses import Address
from backend.localkube.runtime.model import PodSpec

PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT")
POD = "WORKBENCH_POD"
"""Environment variable with the pod's name, for people who look at a process list."""

_SIMULATED = (
    "{python}", "-m", "backend.simulate.engine",
    "--engine", "{engine}",
    "--version", "{version}",
    "--role", "{role}",
    "--host", "{ip}",
    "--port", "{port}",
    "--model", "{model}",
    "--kv-events", "tcp://{ip}:{events_port}",
    "--replay", "tcp://{ip}:{replay_port}",
)  # fmt: skip
SIMULATED_ENGINES: dict[str, tuple[str, ...]] = {"vllm": _SIMULATED, "sglang": _SIMULATED}
"""Rows for a runtime that is started alone, without a table in its settings."""

_PLACE = re.compile(r"\{([a-z_]+)\}")


def argv(spec: PodSpec, address: Address, engines: Mapping[str, Sequence[str]]) -> list[str]:
    """The command line of a pod. Raises ConfigError for an engine without a row or a row with an unknown {place}."""
    row = spec.command or engines.get(spec.engine)
    if row is None:
        known = ", ".join(sorted(engines)) or "none"
        raise ConfigError(f"nobody knows how to start engine {spec.engine!r}", field="engine", fix=f"Known engines: {known}.")
    places = {
        "python": sys.executable,
        "name": spec.name,
        "engine": spec.engine,
        "version": spec.version,
        "model": spec.model,
        "role": spec.role,
        "ip": address.ip,
        "port": str(address.http_port),
        "events_port": str(address.events_port),
        "replay_port": str(address.replay_port),
    }
    return [word for words in _pairs(row) for word in _filled(words, places)] + flags(spec.args)


def flags(args: Mapping[str, str]) -> list[str]:
    """`{"block-size": "64", "quiet": "true"}` as `--block-size 64 --quiet`."""
    words: list[str] = []
    for name, value in args.items():
        if value.lower() == "false":
            continue
        words.append(f"--{name}")
        if value.lower() != "true":
            words.append(value)
    return words


def environment(spec: PodSpec, inherited: Mapping[str, str], extra: Mapping[str, str]) -> dict[str, str]:
    """Environment of a pod: a few of ours, what the runtime adds, and its own last."""
    kept = {name: inherited[name] for name in PASSED_ON if name in inherited}
    return {**kept, "PYTHONUNBUFFERED": "1", POD: spec.name, **extra, **spec.env}


def _pairs(row: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Words of a row, a flag together with the value behind it."""
    at = 0
    while at < len(row):
        width = 2 if row[at].startswith("--") and at + 1 < len(row) and not row[at + 1].startswith("--") else 1
        yield tuple(row[at : at + width])
        at += width


def _filled(words: tuple[str, ...], places: Mapping[str, str]) -> tuple[str, ...]:
    """`words` with their places filled; a flag whose value came out empty is left out, so that the engine's default holds."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in places:
            raise ConfigError(f"has an unknown place {{{found[1]}}}", field="engines", fix=f"Known places: {', '.join(places)}.")
        return places[found[1]]

    filled = tuple(_PLACE.sub(value, word) for word in words)
    return () if len(filled) == 2 and not filled[1] else filled
