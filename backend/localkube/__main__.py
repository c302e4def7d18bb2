"""`python -m backend.localkube --config runtime.toml` or `--state DIR --port N [--kube-port M] [--fleet FILE.yaml]`: pods as processes,
those of a fleet file and, with a port for it, those of a Kubernetes API of our own."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import uvloop

from backend.core import config, files, life, logs, processes, web
from backend.core.errors import UsageError, WorkbenchError
from backend.core.metrics import Registry
from backend.core.settings import RuntimeSettings
from backend.core.supervise import Supervisor
from backend.localkube import fleet_file, service
from backend.localkube.cluster import Cluster
from backend.localkube.runtime import addresses, commands
from backend.localkube.runtime.model import Limits
from backend.localkube.runtime.pods import PodRuntime, RuntimeOptions


def main(arguments: list[str] | None = None) -> int:
    logs.configure("localkube")
    try:
        uvloop.run(run(_settings(arguments)))
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _settings(arguments: list[str] | None) -> RuntimeSettings:
    parser = argparse.ArgumentParser(prog="python -m backend.localkube", description=__doc__)
    parser.add_argument("--config", type=Path, help="TOML file with the runtime's settings")
    parser.add_argument("--state", type=Path, help="state folder")
    parser.add_argument("--port", type=int, help="port of the HTTP interface; also the pods' subnet comes from it")
    parser.add_argument("--kube-port", type=int, help="port of the Kubernetes API; its kubeconfig is STATE/kube/kubeconfig")
    parser.add_argument("--fleet", type=Path, help="fleet file")
    given = parser.parse_args(arguments)
    settings = config.load(RuntimeSettings, given.config, env=os.environ, section="RUNTIME")
    if given.state is not None:
        settings = replace(settings, state=given.state)
    if given.port is not None:
        settings = replace(settings, listen=replace(settings.listen, port=given.port))
    if given.kube_port is not None:
        settings = replace(settings, kube_port=given.kube_port)
    if given.fleet is not None:
        settings = replace(settings, fleet=given.fleet)
    return settings


async def run(settings: RuntimeSettings) -> None:
    """Serve until asked to stop, then end the pods. A runtime that is killed leaves them to its successor."""
    state = files.ensure_folder(settings.state).resolve()
    pipe = life.LifePipe() if life.inherited_life_fd() is None else None
    if pipe is not None:  # alone: nobody above us ends the pods when we are killed, so our own pipe does
        os.environ[life.LIFE_FD] = str(pipe.read_fd)
    stopped = asyncio.Event()
    _on_stop(stopped.set, alone=pipe is not None)
    fleet = service.FleetFile(settings.fleet or fleet_file.SAMPLE)
    specs = fleet.read()
    for spec in specs:
        commands.argv(spec, addresses.Address("127.0.0.1"), settings.engines or commands.SIMULATED_ENGINES)
    async with Supervisor("localkube") as tasks:
        runtime = PodRuntime(_options(settings, state), tasks)
        registry = Registry()
        app = service.routes(runtime, fleet, registry, token=web.read_token(settings.token_file))
        cluster = Cluster(state, runtime, settings.kube_port) if settings.kube_port else None
        runner = await web.serve(app, host=settings.listen.host, port=settings.listen.port, what="the pod runtime")
        try:
            if cluster is not None:
                await cluster.start(specs)
            else:
                runtime.adopt(specs)
            runtime.want(specs)
            tasks.start("fleet file", lambda: service.follow(fleet, runtime))
            tasks.start("logs", lambda: service.keep_logs_small(runtime, settings.log_bytes))
            await stopped.wait()
        finally:
            if cluster is not None:
                await cluster.stop()
            await runtime.close()
            await runner.cleanup()


def _on_stop(callback: Callable[[], None], *, alone: bool) -> None:
    if not alone:
        life.on_stop(callback)
        return
    # Our own pipe would tell us of our own end: signals only.
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, callback)


def _options(settings: RuntimeSettings, state: Path) -> RuntimeOptions:
    subnet = settings.subnet or addresses.subnet_of(settings.listen.port)
    if not addresses.can_bind(f"{subnet}.1"):
        subnet = ""
    limits = Limits(
        grace_s=settings.grace_s,
        first_backoff_s=settings.first_backoff_s,
        longest_backoff_s=settings.longest_backoff_s,
        healthy_s=settings.healthy_s,
    )
    return RuntimeOptions(
        state=state,
        space=addresses.Space(subnet, settings.listen.port, settings.pod_port),
        engines=settings.engines or commands.SIMULATED_ENGINES,
        limits=limits,
        probe_s=settings.probe_s,
        stack=os.environ.get(processes.STACK) or str(state),
    )


if __name__ == "__main__":
    sys.exit(main())
