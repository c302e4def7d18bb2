"""One client against a server on a real socket: what it asks, what it repeats, what it says when it is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from backend.core.errors import UsageError, WireError
from backend.kube import access
from backend.kube.client import KubeClient
from backend.kube.errors import ApiBusy, ApiConflict, ApiError, ApiForbidden, ApiNotFound, ClusterUnreachable, api_error
from backend.kube.resources import CONFIG_MAPS, NAMESPACES, PODS, STORM_SERVICES, key_of
from backend.kube.transport import CONNECTIONS
from tests.fakes.kubeapi import CERTIFICATE, KEY, FakeKubeApi, Fault, kube_api, write_kubeconfig
from tests.fakes.ports import free_base

__all__ = ["kube_api"]


@pytest.fixture
async def client(kube_api: FakeKubeApi, tmp_path: Path) -> AsyncIterator[KubeClient]:
    client = KubeClient.from_kubeconfig(write_kubeconfig(tmp_path / "config", kube_api.url, token="t0p-secret"))
    yield client
    await client.close()


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (PODS.path("a", "b"), "/api/v1/namespaces/a/pods/b"),
        (PODS.path(), "/api/v1/pods"),
        (PODS.path("a"), "/api/v1/namespaces/a/pods"),
        (NAMESPACES.path(None, "a"), "/api/v1/namespaces/a"),
        (STORM_SERVICES.path("a", "b", "status"), "/apis/orchestration.aibrix.ai/v1alpha1/namespaces/a/stormservices/b/status"),
        (PODS.path("a", "b/../c"), "/api/v1/namespaces/a/pods/b%2F..%2Fc"),
    ],
)
def test_a_path_names_the_place_and_cannot_be_broken_out_of(path: str, wanted: str) -> None:
    assert path == wanted


@pytest.mark.parametrize(
    "ask",
    [lambda: PODS.path(None, "b"), lambda: NAMESPACES.path("a", "b"), lambda: PODS.path("a", None, "status")],
    ids=["no namespace", "namespace of a namespace", "subresource of nothing"],
)
def test_a_place_that_cannot_be_is_refused_before_anything_is_sent(ask: Callable[[], str]) -> None:
    with pytest.raises(UsageError):
        ask()


async def test_an_object_is_created_read_changed_and_deleted(client: KubeClient) -> None:
    made = await client.create(CONFIG_MAPS, "fleet", {"metadata": {"name": "one"}, "data": {"a": "1"}})
    assert made["kind"] == "ConfigMap"
    assert key_of(made) == ("fleet", "one")
    assert await client.get(CONFIG_MAPS, "fleet", "one") == made
    changed = await client.patch(CONFIG_MAPS, "fleet", "one", {"data": {"a": None, "b": "2"}})
    assert changed["data"] == {"b": "2"}
    with pytest.raises(ApiConflict) as stale:
        await client.update(CONFIG_MAPS, "fleet", made)
    assert stale.value.conflict
    assert not stale.value.already_exists
    with pytest.raises(ApiError) as twice:
        await client.create(CONFIG_MAPS, "fleet", {"metadata": {"name": "one"}})
    assert twice.value.already_exists
    with pytest.raises(ApiConflict):
        await client.delete(CONFIG_MAPS, "fleet", "one", uid="of another")
    await client.delete(CONFIG_MAPS, "fleet", "one", uid=made["metadata"]["uid"])
    with pytest.raises(ApiNotFound) as gone:
        await client.get(CONFIG_MAPS, "fleet", "one")
    assert gone.value.not_found


async def test_a_list_is_read_page_by_page_and_looks_like_what_a_watch_tells(client: KubeClient, kube_api: FakeKubeApi) -> None:
    for number in range(7):
        await kube_api.put("v1/pods", "fleet", f"pod-{number}", metadata={"labels": {"parity": str(number % 2)}})
    await kube_api.put("v1/pods", "other", "pod-0")
    listed = await client.list(PODS, "fleet", limit=3)
    assert [item["metadata"]["name"] for item in listed.items] == [f"pod-{number}" for number in range(7)]
    assert {(item["kind"], item["apiVersion"]) for item in listed.items} == {("Pod", "v1")}
    assert listed.version == str(kube_api.version)
    assert sum("continue" in path for _, path in kube_api.requests) == 2
    assert len((await client.list(PODS)).items) == 8
    assert len((await client.list(PODS, labels="parity=1")).items) == 3


async def test_a_list_whose_token_expires_between_two_pages_begins_again(client: KubeClient, kube_api: FakeKubeApi) -> None:
    for number in range(4):
        await kube_api.put("v1/pods", "fleet", f"pod-{number}")
    kube_api.faults.append(Fault(410, path="continue", reason="Expired"))
    assert len((await client.list(PODS, limit=3)).items) == 4
    kube_api.faults.append(Fault(410, times=100, path="continue", reason="Expired"))
    assert len((await client.list(PODS, limit=3)).items) == 4
    assert "limit" not in kube_api.requests[-1][1]


async def test_a_watch_tells_changes_in_order_bookmarks_and_ends_without_an_error(client: KubeClient, kube_api: FakeKubeApi) -> None:
    kube_api.bookmark_s = 0.05
    start = str(kube_api.version)
    await kube_api.put("v1/pods", "fleet", "a", note="ä" * 100_000)
    await kube_api.put("v1/pods", "fleet", "a", note="")
    await kube_api.remove("v1/pods", "fleet", "a")
    events = [event async for event in client.watch(PODS, version=start, timeout_s=1)]
    assert [event.kind for event in events][:3] == ["ADDED", "MODIFIED", "DELETED"]
    assert len(events[0].object["note"]) == 100_000
    assert {event.kind for event in events[3:]} == {"BOOKMARK"}
    assert kube_api.seen_headers[-1]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("as_event", [True, False], ids=["as an event", "as a status"])
async def test_a_watch_from_a_forgotten_version_is_gone(client: KubeClient, kube_api: FakeKubeApi, as_event: bool) -> None:
    kube_api.event_410 = as_event
    kube_api.forget_history()
    with pytest.raises(ApiError) as error:
        _ = [event async for event in client.watch(PODS, version="1")]
    assert error.value.gone


async def test_a_watch_that_breaks_says_so_and_another_can_be_opened(client: KubeClient, kube_api: FakeKubeApi) -> None:
    await kube_api.put("v1/pods", "fleet", "a")
    seen: list[str] = []

    async def follow() -> None:
        async for event in client.watch(PODS, version="1", on_open=lambda: seen.append("open")):
            seen.append(event.kind)
            await kube_api.break_watches()

    with pytest.raises(ClusterUnreachable, match="connection broke"):
        await follow()
    assert seen == ["open", "ADDED"]
    watch = client.watch(PODS, version="1")
    async with contextlib.aclosing(watch):
        assert (await anext(watch)).kind == "ADDED"


async def test_the_server_is_heard_when_it_asks_to_come_later(client: KubeClient, kube_api: FakeKubeApi) -> None:
    kube_api.faults.append(Fault(429, times=2, method="POST", headers={"Retry-After": "0"}))
    await client.create(CONFIG_MAPS, "fleet", {"metadata": {"name": "one"}})
    assert [method for method, _ in kube_api.requests] == ["POST"] * 3
    kube_api.faults.append(Fault(429, times=1, headers={"Retry-After": "3600"}))
    with pytest.raises(ApiBusy) as busy:
        await client.get(CONFIG_MAPS, "fleet", "one")
    assert busy.value.retry_after == 3600


@pytest.mark.parametrize(("method", "asked"), [("GET", 2), ("POST", 1)], ids=["a read", "a write"])
async def test_only_reads_are_repeated_when_nobody_knows_what_became_of_them(
    client: KubeClient, kube_api: FakeKubeApi, method: str, asked: int
) -> None:
    kube_api.faults.append(Fault(503, times=1, method=method))
    with contextlib.suppress(ApiBusy):
        await client.raw(method, "/version", body=b"{}" if method == "POST" else None)
    assert len(kube_api.requests) == asked


async def test_a_token_that_was_replaced_in_the_file_is_read_again_and_the_call_succeeds(kube_api: FakeKubeApi, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    client = KubeClient.from_kubeconfig(write_kubeconfig(tmp_path / "config", kube_api.url, tokenFile=str(token)))
    kube_api.token = "first"
    await client.server_version()
    kube_api.token = "second"
    token.write_text("second\n")
    await client.server_version()
    kube_api.token = "third"
    with pytest.raises(ApiForbidden, match="Unauthorized"):
        await client.server_version()
    await client.close()


async def test_a_token_is_read_again_before_it_is_refused(kube_api: FakeKubeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH_S", 0.0)
    token = tmp_path / "token"
    token.write_text("first")
    client = KubeClient.from_kubeconfig(write_kubeconfig(tmp_path / "config", kube_api.url, tokenFile=str(token)))
    token.write_text("second")
    await client.server_version()
    assert kube_api.seen_headers[-1]["Authorization"] == "Bearer second"
    token.unlink()
    await client.server_version()
    assert kube_api.seen_headers[-1]["Authorization"] == "Bearer second", "an unreadable file leaves the old token in use"
    await client.close()


async def test_a_cluster_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    server = f"http://127.0.0.1:{free_base(tmp_path)}"
    client = KubeClient.from_kubeconfig(write_kubeconfig(tmp_path / "config", server, token="t0p-secret"))
    with pytest.raises(ClusterUnreachable) as error:
        await client.create(CONFIG_MAPS, "fleet", {"metadata": {"name": "one"}})
    assert error.value.unsent
    assert server in str(error.value)
    assert error.value.fix
    assert "t0p-secret" not in f"{error.value!r}{error.value}{client.access!r}"
    await client.close()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_server_that_does_not_answer_in_time_is_not_asked_again(client: KubeClient, kube_api: FakeKubeApi, method: str) -> None:
    kube_api.faults.append(Fault(500, times=9, after_s=30))
    with pytest.raises(ClusterUnreachable, match=r"no answer within 0\.1 s") as error:
        await client.raw(method, "/version", timeout_s=0.1)
    assert not error.value.unsent
    assert len(kube_api.requests) == 1


async def test_calls_that_are_cancelled_give_their_connections_back(client: KubeClient, kube_api: FakeKubeApi) -> None:
    kube_api.faults.append(Fault(500, times=100, method="POST", after_s=30))
    calls = [asyncio.create_task(client.raw("POST", "/version")) for _ in range(100)]
    while len(kube_api.requests) < CONNECTIONS:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert len(kube_api.requests) == CONNECTIONS, "the others waited for a connection"
    async with asyncio.timeout(10):
        await asyncio.gather(*(client.server_version() for _ in range(100)))


@pytest.fixture
async def tls_api() -> AsyncIterator[FakeKubeApi]:
    """A server that speaks TLS and asks for a client certificate."""
    api = FakeKubeApi()
    api.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(CERTIFICATE))
    api.tls.load_cert_chain(CERTIFICATE, KEY)
    api.tls.verify_mode = ssl.CERT_REQUIRED
    await api.start()
    yield api
    await api.stop()


PAIR = {"client-certificate": str(CERTIFICATE), "client-key": str(KEY)}
TRUST = {"certificate-authority": str(CERTIFICATE)}


async def ask_over_tls(server: str, file: Path, cluster: dict[str, str | bool], user: dict[str, str]) -> None:
    client = KubeClient.from_kubeconfig(write_kubeconfig(file, server, cluster=cluster, **user))
    try:
        await client.server_version()
    finally:
        await client.close()


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("127.0.0.1", TRUST),
        ("localhost", TRUST | {"tls-server-name": "fleet.test"}),
        ("localhost", {"insecure-skip-tls-verify": True}),
    ],
    ids=["by address", "by another name", "unchecked"],
)
async def test_certificates_of_both_sides_are_used(tls_api: FakeKubeApi, tmp_path: Path, name: str, cluster: dict[str, str | bool]) -> None:
    await ask_over_tls(tls_api.url.replace("127.0.0.1", name), tmp_path / "config", cluster, PAIR)
    assert tls_api.requests == [("GET", "/version")]


@pytest.mark.parametrize(
    ("name", "cluster"), [("127.0.0.1", {}), ("localhost", TRUST)], ids=["of an unknown authority", "for another name"]
)
async def test_a_certificate_that_is_not_trusted_is_told_as_that(
    tls_api: FakeKubeApi, tmp_path: Path, name: str, cluster: dict[str, str | bool]
) -> None:
    with pytest.raises(ClusterUnreachable, match="certificate is not trusted") as error:
        await ask_over_tls(tls_api.url.replace("127.0.0.1", name), tmp_path / "config", cluster, PAIR)
    assert "certificate-authority" in error.value.fix
    assert not tls_api.requests


async def test_a_missing_client_certificate_is_an_error_and_no_silence(tls_api: FakeKubeApi, tmp_path: Path) -> None:
    with pytest.raises(ClusterUnreachable):
        await ask_over_tls(tls_api.url, tmp_path / "config", TRUST, {"token": "t"})


async def test_a_call_that_begins_while_the_server_restarts_is_repeated_until_it_is_back(client: KubeClient, kube_api: FakeKubeApi) -> None:
    await client.server_version()
    await kube_api.stop()
    call = asyncio.create_task(client.create(CONFIG_MAPS, "fleet", {"metadata": {"name": "one"}}))
    await asyncio.sleep(0.05)
    await kube_api.start()
    assert (await call)["metadata"]["name"] == "one"


async def test_what_answers_but_speaks_no_kubernetes_is_told_apart(client: KubeClient, kube_api: FakeKubeApi) -> None:
    kube_api.objects["v1/pods", "fleet", "page"] = "Welcome"  # type: ignore[assignment]
    with pytest.raises(WireError):
        await client.get(PODS, "fleet", "page")


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, ApiNotFound), (409, ApiConflict), (410, ApiConflict), (401, ApiForbidden), (403, ApiForbidden), (429, ApiBusy), (503, ApiBusy)],
)
def test_a_status_becomes_the_error_that_says_what_can_be_done(status: int, kind: type[ApiError]) -> None:
    error = api_error(status, b"<html>proxy</html>", what="GET /x")
    assert type(error) is kind
    assert "proxy" in error.message


def test_every_violation_of_a_refused_object_is_named_by_its_field() -> None:
    causes = [{"field": "spec.replicas", "message": "must be a number"}, {"field": "spec.stateful", "message": "unknown field"}]
    body = {"kind": "Status", "code": 422, "reason": "Invalid", "message": "StormService is invalid", "details": {"causes": causes}}
    error = api_error(422, json.dumps(body).encode(), what="PATCH /x")
    assert [cause.field for cause in error.causes] == ["spec.replicas", "spec.stateful"]
    assert error.reason == "Invalid"
    assert not error.retry_told
