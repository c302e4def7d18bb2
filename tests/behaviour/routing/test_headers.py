"""Headers that narrow the choice of pods, and those of AIBrix that are not supported: neither is ignored in silence."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.fakes.fleet import pod, running_gateway
from tests.fakes.raw_http import RawClient, ask, completion, get
from tests.fakes.upstream import FakeEngine


@pytest.mark.parametrize(
    ("lines", "allowed"),
    [
        pytest.param("external-filter: zone=a\r\n", {"a"}, id="one_label"),
        pytest.param("External-Filter: zone in (b, c), !slow\r\n", {"b"}, id="several_parts"),
        pytest.param("external-filter: zone\r\nexternal-filter: zone!=a,!slow\r\n", {"b"}, id="two_headers_both_hold"),
        pytest.param("external-filter: \r\n", {"a", "b", "c"}, id="empty"),
    ],
)
@pytest.mark.parametrize("policy", ["random", "least-request", "prefix-cache"])
async def test_only_pods_that_the_filter_lets_through_are_chosen(tmp_path: Path, lines: str, allowed: set[str], policy: str) -> None:
    async with FakeEngine("a") as a, FakeEngine("b") as b, FakeEngine("c") as c:
        labels = ({"zone": "a"}, {"zone": "b"}, {"zone": "c", "slow": "yes"})
        pods = [msgspec.structs.replace(pod(engine), labels=given) for engine, given in zip((a, b, c), labels, strict=True)]
        async with running_gateway(tmp_path, pods, policy=policy) as gateway:
            chosen = {(await ask(gateway.port, completion(), extra=lines)).headers["target-pod"] for _ in range(16 * len(allowed))}
            assert chosen == allowed
            assert set((await gateway.record()).candidates) == allowed


async def test_a_retry_stays_among_the_pods_that_the_filter_lets_through(tmp_path: Path) -> None:
    async with FakeEngine("a", behaviour="reset") as a, FakeEngine("b") as b:
        pods = [msgspec.structs.replace(pod(a), labels={"zone": "a"}), pod(b)]
        async with running_gateway(tmp_path, pods) as gateway:
            assert (await ask(gateway.port, completion(), extra="external-filter: zone=a\r\n")).status == 502
        assert b.requests == []


@pytest.mark.parametrize("selector", ["zone in a", "zone>5", "=a", "zone=a,,b"])
async def test_a_filter_that_cannot_be_read_is_refused(tmp_path: Path, selector: str) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        answer = await ask(gateway.port, completion(), extra=f"external-filter: {selector}\r\n")
        assert (answer.status, answer.headers["x-error-routing"]) == (400, "true")
        assert "external-filter" in answer.json()["error"]["message"]
        assert engine.requests == []


async def test_a_filter_that_no_pod_passes_is_said(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        answer = await ask(gateway.port, completion(), extra="external-filter: zone=nowhere\r\n")
        assert (answer.status, answer.headers["x-error-routing"]) == (503, "true")
        error = answer.json()["error"]
        assert error["code"] == "service_unavailable"
        assert "zone=nowhere" in error["message"]
        assert engine.requests == []


async def test_headers_that_are_not_supported_are_counted(tmp_path: Path) -> None:
    async with FakeEngine("a") as engine, running_gateway(tmp_path, [pod(engine)]) as gateway:
        await ask(gateway.port, completion(), extra="config-profile: fast\r\nX-Session-ID: 1\r\n")
        await ask(gateway.port, completion(), extra="x-session-id: 2\r\n")
        await ask(gateway.port, completion())
        async with RawClient(gateway.port) as client:
            client.send(get("/metrics"))
            text = (await client.answer()).body.decode()
    assert 'gateway_ignored_headers_total{header="config-profile"} 1.0' in text
    assert 'gateway_ignored_headers_total{header="x-session-id"} 2.0' in text
