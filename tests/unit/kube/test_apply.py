"""What a program needs in a cluster is there afterwards, whatever was there before and whatever kind of apply the server knows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backend.core.errors import ConfigError, NotFound, PermanentError, Unavailable
from backend.kube.apply import ensure, read_documents, resource_of, wait_established
from backend.kube.client import KubeClient
from backend.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, ROLE_SETS
from tests.fakes.kubeapi import FakeKubeApi, kube_api, write_kubeconfig

__all__ = ["kube_api"]

CRDS = "apiextensions.k8s.io/v1/customresourcedefinitions"
CRD = "rolesets.orchestration.aibrix.ai"
GROUP = "orchestration.aibrix.ai/v1alpha1"


def crd(**status: Any) -> dict[str, Any]:
    spec = {"group": "orchestration.aibrix.ai", "names": {"kind": "RoleSet", "plural": "rolesets"}, "versions": [served()]}
    return {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": CRD}, "spec": spec} | (
        {"status": status} if status else {}
    )


def served() -> dict[str, Any]:
    return {"name": "v1alpha1", "served": True, "storage": True}


ROLE_SET = {"apiVersion": GROUP, "kind": "RoleSet", "metadata": {"name": "one"}, "spec": {"roles": []}}


@pytest.fixture
async def client(kube_api: FakeKubeApi, tmp_path: Path) -> AsyncIterator[KubeClient]:
    client = KubeClient.from_kubeconfig(write_kubeconfig(tmp_path / "config", kube_api.url))
    yield client
    await client.close()


async def establish(api: FakeKubeApi) -> None:
    """What the server does by itself after a CRD was stored: the condition first, discovery a little later."""
    while (CRDS, "", CRD) not in api.objects:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    conditions = [{"type": "NamesAccepted", "status": "True"}, {"type": "Established", "status": "True"}]
    await api.put(CRDS, "", CRD, **{**api.objects[CRDS, "", CRD], "status": {"conditions": conditions}})
    await asyncio.sleep(0.05)
    api.plurals[GROUP] = [
        {"name": "rolesets", "kind": "RoleSet", "namespaced": True},
        {"name": "rolesets/status", "kind": "RoleSet", "namespaced": True},
    ]


@pytest.mark.parametrize("server_side", [True, False], ids=["server-side apply", "create and merge"])
async def test_objects_follow_their_crd_and_a_second_time_changes_nothing(
    client: KubeClient, kube_api: FakeKubeApi, server_side: bool
) -> None:
    kube_api.server_side_apply = server_side
    server = asyncio.create_task(establish(kube_api))
    done = await ensure(client, [ROLE_SET, crd()], namespace="prod")
    assert [(entry.kind, entry.namespace, entry.outcome) for entry in done] == [
        ("CustomResourceDefinition", "", "created"),
        ("RoleSet", "prod", "created"),
    ]
    await server
    assert {entry.outcome for entry in await ensure(client, [crd(), ROLE_SET], namespace="prod")} == {"unchanged"}
    wider = {**ROLE_SET, "spec": {"roles": [{"name": "prefill"}]}}
    assert [entry.outcome for entry in await ensure(client, [wider], namespace="prod")] == ["changed"]
    assert (await client.get(ROLE_SETS, "prod", "one"))["spec"] == wider["spec"]


async def test_a_kind_whose_crd_is_absent_is_named(client: KubeClient) -> None:
    with pytest.raises(NotFound, match="knows no RoleSet in orchestration"):
        await resource_of(client, GROUP, "RoleSet")


async def test_a_crd_whose_names_are_taken_is_told_at_once(client: KubeClient, kube_api: FakeKubeApi) -> None:
    conditions = [{"type": "NamesAccepted", "status": "False", "message": '"rolesets" is already in use'}]
    await kube_api.put(CRDS, "", CRD, **{**crd(), "status": {"conditions": conditions}})
    with pytest.raises(PermanentError, match="already in use"):
        await wait_established(client, CRD)


async def test_a_crd_that_is_never_established_ends_the_waiting(client: KubeClient) -> None:
    await client.create(CUSTOM_RESOURCE_DEFINITIONS, None, crd())
    with pytest.raises(Unavailable, match="still not established after"):
        await wait_established(client, CRD, timeout_s=0.2)


@pytest.mark.parametrize("field", ["kind", "apiVersion"])
async def test_a_document_without_a_name_for_itself_is_refused(client: KubeClient, field: str) -> None:
    with pytest.raises(ConfigError) as error:
        await ensure(client, [{name: value for name, value in ROLE_SET.items() if name != field}])
    assert error.value.field == field


def test_documents_are_read_from_files_with_lists_unfolded(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text("---\nkind: A\n---\nkind: List\nitems: [{kind: B}, {kind: C}]\n---\n")
    assert [document["kind"] for document in read_documents(file)] == ["A", "B", "C"]
    file.write_text("kind: A\n  wrong: [")
    with pytest.raises(ConfigError) as error:
        read_documents(file)
    assert error.value.line == 2
    file.write_text("- a\n")
    with pytest.raises(ConfigError, match="document 1 is not a mapping"):
        read_documents(file)
