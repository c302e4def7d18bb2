"""ZeroMQ endpoints as an engine lists them, as seen from another host. Pure."""

from __future__ import annotations

WILDCARDS = ("*", "0.0.0.0", "[::]", "::", "")


def on_host(endpoint: str, host: str) -> tuple[str, bool]:
    """`endpoint` as seen from outside, and whether it named a wildcard host."""
    scheme, _, address = endpoint.partition("://")
    name, _, port = address.rpartition(":")
    if scheme != "tcp" or name not in WILDCARDS:
        return endpoint, False
    return f"tcp://{host}:{port}", True
