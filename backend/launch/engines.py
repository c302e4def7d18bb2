"""How each engine family is started on a laptop: the table that the pod runtime gets from us, so that it need not know an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from backend.localkube.runtime import commands

if TYPE_CHECKING:
    from backend.simulate.engine.server import EngineServer

TABLE: dict[str, tuple[str, ...]] = {**commands.SIMULATED_ENGINES}
"""Engine name of a fleet file -> command line with {places}. A real engine on this machine is one more row."""


async def in_process(arguments: Sequence[str]) -> EngineServer:
    """A simulated engine as an object of this loop, from the arguments of `python -m backend.simulate.engine`. Raises UsageError."""
    from backend.simulate.engine import __main__ as engine
    from backend.simulate.engine.server import EngineServer

    settings, delay_s = engine.read(arguments)
    await asyncio.sleep(delay_s)
    return EngineServer(settings)
