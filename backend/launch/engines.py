"""How each engine family is started on a laptop: the table that the pod runtime gets from us, so that it need not know an engine."""

from __future__ import annotations

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

TABLE: dict[str, tuple[str, ...]] = {"vllm": _SIMULATED}
"""Engine name of a fleet file -> command line."""
