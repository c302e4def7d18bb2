"""How each engine family is started on a laptop: the table that the pod runtime gets from us, so that it need not know an engine."""

from __future__ import annotations

from backend.localkube.runtime import commands

TABLE: dict[str, tuple[str, ...]] = {**commands.SIMULATED_ENGINES}
"""Engine name of a fleet file -> command line with {places}. A real engine on this machine is one more row."""
