"""Which parts make an engine of each family: the one core, with the family's hashes, events, figures, routes and KV transfer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from backend.engines.cost import preset
from backend.simulate.engine.dialect import dialect_of
from backend.simulate.engine.driver import Driver
from backend.simulate.engine.figures import VllmFigures
from backend.simulate.engine.hashing import BlockHasher
from backend.simulate.engine.model import Sampler
from backend.simulate.engine.nixl import NixlConnector
from backend.simulate.engine.publisher import Publisher
from backend.simulate.engine.routes import VllmRoutes
from backend.simulate.engine.routing import Router
from backend.simulate.engine.scheduler import EngineCore
from backend.simulate.engine.settings import EngineSettings
from backend.simulate.engine.sglang.bootstrap import BootstrapConnector
from backend.simulate.engine.sglang.events import SglangHasher, sglang_dialect_of
from backend.simulate.engine.sglang.figures import SglangFigures
from backend.simulate.engine.sglang.routes import SglangRoutes
from backend.simulate.engine.tokenizer import load


class Connector(Protocol):
    """Moves KV between engines over sockets of its own."""

    async def start(self) -> None:
        """Raises PortInUse."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Parts:
    driver: Driver
    routes: Router
    publisher: Publisher | None
    connector: Connector | None


def build(settings: EngineSettings, sampler: Sampler | None) -> Parts:
    """Call it inside a running loop. Raises UsageError, EnvironmentProblem."""
    return _sglang(settings, sampler) if settings.engine == "sglang" else _vllm(settings, sampler)


def _vllm(settings: EngineSettings, sampler: Sampler | None) -> Parts:
    version = settings.version_numbers
    tokenizer = load(settings.tokenizer)
    hasher = BlockHasher(algorithm=settings.hash_algorithm, seed=settings.hash_seed, version=version)
    core = EngineCore(settings.core, hasher, sampler or tokenizer.sample, preset(settings.preset), speed=settings.speed)
    dialect = None if settings.kv_events is None else dialect_of(version, byte_hashes=settings.byte_hashes)
    publisher = None
    if settings.kv_events is not None and dialect is not None:
        publisher = Publisher(settings.kv_events, replay_has_topic=dialect.replay_has_topic)
    driver = Driver(core, VllmFigures(settings), publisher, dialect)
    connector = None
    if settings.disaggregated:
        connector = driver.mover = NixlConnector(settings, driver)
    return Parts(driver, VllmRoutes(settings, driver, tokenizer, publisher, connector), publisher, connector)


def _sglang(settings: EngineSettings, sampler: Sampler | None) -> Parts:
    tokenizer = load(settings.tokenizer)
    # A decode takes its KV as it comes and keeps no prefix cache; held KV waits as long as its request does.
    limits = replace(settings.core, tell_copies=False, prefix_cache=settings.role != "decode", lease_s=math.inf)
    core = EngineCore(limits, SglangHasher(), sampler or tokenizer.sample, preset(settings.preset), speed=settings.speed)
    dialect = None if settings.kv_events is None else sglang_dialect_of(settings.version_numbers)
    publisher = None
    if settings.kv_events is not None and dialect is not None:
        publisher = Publisher(settings.kv_events, replay_has_topic=dialect.replay_has_topic)
    driver = Driver(core, SglangFigures(settings), publisher, dialect)
    connector = None
    if settings.role != "both":
        connector = driver.mover = BootstrapConnector(settings, driver)
    return Parts(driver, SglangRoutes(settings, driver, tokenizer, publisher, connector), publisher, connector)
