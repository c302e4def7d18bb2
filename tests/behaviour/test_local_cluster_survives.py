"""The API server as a process: what it acknowledged survives `kill -9`, clients go on with the same login, strangers stay out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backend.core.errors import PortInUse
from backend.localkube.api import certificate
from backend.localkube.api.server import ApiServer
from backend.localkube.objects import Objects
from tests.contract.kubernetes.kubecontract.client import Api, Target, expect, target_from_kubeconfig
from tests.contract.kubernetes.kubecontract.objects import CONFIGMAPS, PODS, configmap, pod

Servers = list[subprocess.Popen[bytes]]


@pytest.fixture
def servers() -> Iterator[Servers]:
    started: Servers = []
    yield started
    for process in started:
        process.kill()
        process.wait(10)


def start(servers: Servers, state: Path, port: int = 0) -> Target:
    kubeconfig = state / "kubeconfig"
    before = kubeconfig.stat().st_mtime_ns if kubeconfig.exists() else 0
    command = [sys.executable, "-m", "backend.localkube.api", "--state", str(state), "--port", str(port)]
    servers.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    deadline = time.monotonic() + 15
    while not kubeconfig.exists() or kubeconfig.stat().st_mtime_ns == before:
        assert servers[-1].poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return target_from_kubeconfig(kubeconfig)


def test_what_was_acknowledged_survives_a_kill_in_the_middle_of_writing(servers: Servers, tmp_path: Path):
    target = start(servers, tmp_path)
    api = Api(target)
    names: list[str] = []

    def write() -> None:
        with contextlib.suppress(httpx.HTTPError):
            for index in itertools.count():
                expect(api.post(CONFIGMAPS.at("default"), configmap(f"c{index}")), 201)
                names.append(f"c{index}")

    writer = threading.Thread(target=write)
    writer.start()
    while len(names) < 100:
        time.sleep(0.005)
    old = expect(Api(target).get(CONFIGMAPS.at("default")))["metadata"]["resourceVersion"]
    servers[-1].kill()
    servers[-1].wait()
    writer.join(10)
    again = Api(Target(start(servers, tmp_path, int(target.server.rpartition(":")[2])).server, target.token, target.verify))
    listed = expect(again.get(CONFIGMAPS.at("default")))
    assert set(names) <= {item["metadata"]["name"] for item in listed["items"]}
    with again.watch(CONFIGMAPS.at("default"), resourceVersion=old) as watch:
        event = watch.next()
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)


def test_the_login_is_for_its_owner_alone(servers: Servers, tmp_path: Path):
    start(servers, tmp_path)
    for name in ("kubeconfig", "server.key", "cluster.sqlite", "cluster.sqlite-wal"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600, name


@pytest.mark.parametrize("headers", [{"Origin": "https://example.org"}, {"Host": "example.org"}], ids=["origin", "host"])
def test_web_pages_are_refused_even_with_the_token(servers: Servers, tmp_path: Path, headers: dict[str, str]):
    target = start(servers, tmp_path)
    login = {"Authorization": f"Bearer {target.token}", **headers}
    assert httpx.get(target.server + "/api", headers=login, verify=target.verify, trust_env=False).status_code == 403


async def test_a_log_comes_from_whoever_runs_the_pods(tmp_path: Path):
    async def lines() -> object:
        for line in (b"one\n", b"two\n"):
            yield line

    def logs(namespace: str, name: str, container: str, options: dict[str, str]) -> object:
        return lines() if options.get("follow") == "true" else f"{namespace}/{name}/{container} {options}".encode()

    objects = Objects()
    server = ApiServer(objects, port=0, kubeconfig=tmp_path / "kubeconfig", logs=logs)
    await server.start()
    objects.create("pods", pod("p", metadata={"namespace": "default"}, nodeName="local-0"))
    try:
        verify = ssl.create_default_context(cafile=str(tmp_path / "server.crt"))
        headers = {"Authorization": f"Bearer {server.token}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, verify=verify, trust_env=False) as client:
            path = PODS.at("default", "p", "log")
            assert (await client.get(path, params={"tailLines": 2})).text == "default/p/main {'tailLines': '2'}"
            assert (await client.get(path, params={"follow": "true"})).text == "one\ntwo\n"
    finally:
        await server.stop()


async def test_stopping_ends_open_watches_at_once(tmp_path: Path):
    server = ApiServer(Objects(), port=0, kubeconfig=tmp_path / "kubeconfig")
    await server.start()
    verify = ssl.create_default_context(cafile=str(tmp_path / "server.crt"))
    headers = {"Authorization": f"Bearer {server.token}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, verify=verify, trust_env=False) as client:
        async with client.stream("GET", PODS.at(), params={"watch": "true"}) as response:
            assert response.status_code == 200
            await asyncio.wait_for(server.stop(), 2)
            with pytest.raises(httpx.HTTPError):
                async for _ in response.aiter_lines():
                    pass


async def test_a_taken_port_is_named(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ApiServer(Objects(), port=taken.getsockname()[1], kubeconfig=tmp_path / "kubeconfig")
        with pytest.raises(PortInUse, match="Kubernetes API"):
            await server.start()


def test_certificates_are_accepted_by_a_strict_verifier_and_differ():
    first, second = certificate.make(), certificate.make()
    assert first != second
    strict = ssl.create_default_context(cadata=first[0].decode())
    strict.verify_flags |= ssl.VERIFY_X509_STRICT
    assert strict.cert_store_stats() == {"x509": 1, "crl": 0, "x509_ca": 1}
