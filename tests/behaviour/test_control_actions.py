"""The Action pipeline through control's HTTP interface, a real stream server and an API server on a socket whose planner is ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from aiohttp import web as aiohttp_web

import workbench
from backend.api import routes
from backend.api.actions import ActionPlan, Operation
from backend.control.actions.handlers import ActionHandlers
from backend.control.handlers import Handlers
from backend.control.operations import OPERATIONS
from backend.control.service import Control
from backend.core import web
from backend.core.errors import ConfigError
from backend.core.metrics import Registry
from backend.core.settings import ActionSettings, ControlSettings, HistorySettings, RecordSettings
from backend.core.supervise import Supervisor
from tests.behaviour.test_control_api import conform
from tests.fakes.kubeapi import Fault, write_kubeconfig
from tests.fakes.storm_api import StormKubeApi, storm_api
from tests.fakes.storm_cluster import BAD_IMAGE, storm_service
from tests.fakes.valkey import Valkey, valkey
from workbench.errors import InvalidRequest, OperationFailed, StaleState, Unavailable

__all__ = ["storm_api", "valkey"]

TOKEN = "a-token"


@dataclass
class Stack:
    """A control that can be ended and started again on the same cluster and stream server."""

    settings: ControlSettings
    control: Control | None = None
    runner: aiohttp_web.AppRunner | None = None
    tasks: Supervisor | None = None
    url: str = ""

    async def start(self, port: int = 0) -> None:
        self.tasks = Supervisor("control")
        self.control = Control(self.settings, self.tasks, token=TOKEN)
        app = web.application(Registry(), token=TOKEN)
        Handlers(self.control).register(app, "1")
        await self.control.start()
        self.runner = await web.serve(app, host="127.0.0.1", port=port, what="control")
        self.url = f"http://127.0.0.1:{web.bound_port(self.runner)}"

    async def stop(self) -> None:
        assert self.control is not None
        assert self.runner is not None
        self.control.hub.close()
        await self.runner.cleanup()
        await self.control.close()

    async def restart(self) -> None:
        port = int(self.url.rpartition(":")[2])
        await self.stop()
        await self.start(port)


@pytest.fixture
async def stack(tmp_path: Path, valkey: Valkey, storm_api: StormKubeApi) -> AsyncIterator[Stack]:
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", storm_api.url)
    settings = ControlSettings(
        state=tmp_path / "state",
        kvindex_url="http://127.0.0.1:9",
        gateway_url="http://127.0.0.1:9",
        records=RecordSettings(redis_url=valkey.url, stream="s"),
        history=HistorySettings(write_s=5.0),
        actions=ActionSettings(kubeconfig=kubeconfig, stall_s=1.0, trouble_s=0.5),
    )
    made = Stack(settings)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def wb(stack: Stack) -> AsyncIterator[Any]:
    async with workbench.connect(stack.url, TOKEN, asynchronous=True) as connected:
        yield connected


async def test_an_upgrade_over_http_is_planned_applied_watched_and_undone(stack, wb, storm_api):
    plan = await wb.services.plan("set-image", "qwen", image="engine:2", reason="newer")
    assert plan.plan.diff[0].path.endswith("containers[engine].image")
    operation = await plan.apply("qwen")
    assert (await plan.apply("qwen")).id == operation.id, "the same object applies once"
    done = await operation.wait(20)
    assert done.state == "done"
    assert storm_api.cluster.images() == ["engine:2"] * 4
    back = await (await done.undo()).apply("qwen")
    await back.wait(20)
    assert storm_api.cluster.images() == ["engine:1"] * 4
    told = [(one.action, one.outcome) for one in await wb.services.audit()]
    assert told == [("undo", "done"), ("set-image", "done")]
    assert [one.state for one in await wb.services.operations(service="qwen")] == ["done", "undone"]


async def test_changes_of_an_operation_are_streamed(stack, wb):
    async def follow() -> list[Operation]:
        seen: list[Operation] = []
        async for event in wb.stream(["operation"]):
            if event.kind == "operation":
                seen.append(event.data)
                if not event.data.active:
                    return seen
        return seen

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.2)
    await (await wb.services.plan("set-image", "qwen", image="engine:2")).apply("qwen")
    async with asyncio.timeout(20):
        seen = await following
    assert seen[-1].state == "done"
    assert [one.steps_done for one in seen] == sorted(one.steps_done for one in seen)


async def test_an_operation_goes_on_in_the_control_that_starts_next(stack, wb, storm_api):
    operation = await (await wb.services.plan("set-image", "qwen", image="engine:2")).apply("qwen")
    await stack.restart()
    assert (await operation.wait(20)).state == "done"
    assert storm_api.cluster.images() == ["engine:2"] * 4


async def test_an_image_that_never_gets_ready_fails_and_is_aborted(stack, wb, storm_api):
    operation = await (await wb.services.plan("set-image", "qwen", image=BAD_IMAGE)).apply("qwen")
    with pytest.raises(OperationFailed, match="No progress"):
        await operation.wait(20)
    await operation.abort("qwen")
    assert (await operation.wait(20)).state == "aborted"
    assert storm_api.cluster.images() == ["engine:1"] * 4


async def test_a_stale_plan_is_a_conflict_that_names_the_fields(stack, wb, storm_api):
    plan = await wb.services.plan("set-image", "qwen", image="engine:2")
    await storm_api.cluster.patch("default", "qwen", {"spec": {"revisionHistoryLimit": 4}})
    with pytest.raises(StaleState, match="revisionHistoryLimit: absent > 4"):
        await plan.apply("qwen")


async def test_a_manifest_with_a_wrong_field_is_refused_by_its_path(stack, wb):
    manifest = storm_service("other")
    manifest["spec"]["template"]["spec"]["roles"][1]["replicas"] = -1
    with pytest.raises(InvalidRequest, match=r"spec\.template\.spec\.roles\[1\]\.replicas"):
        await wb.services.plan_create(manifest)


async def test_creation_and_deletion(stack, wb, storm_api):
    await (await (await wb.services.plan_create(storm_service("other"))).apply()).wait(20)
    assert [row.name for row in await wb.services.table()] == ["other", "qwen"]
    await (await (await wb.services.plan("delete", "other")).apply("other", reason="not needed")).wait(20)
    assert [row.name for row in await wb.services.table()] == ["qwen"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(403, times=99, path="/stormservices"), "refuses us"),
        (Fault(404, times=99, path="/stormservices"), "kubectl apply -f"),
        (Fault(404, times=99, path="/rolesets"), "kubectl apply -f"),
    ],
    ids=["forbidden", "no_definitions", "no_rolesets"],
)
async def test_what_a_cluster_refuses_is_said_with_what_to_do(stack, wb, storm_api, fault, message):
    storm_api.faults.append(fault)
    with pytest.raises(Unavailable, match=message):
        await wb.services.plan("delete", "qwen")


async def test_a_cluster_that_is_gone_is_said_so(stack, wb, storm_api):
    await super(StormKubeApi, storm_api).stop()
    with pytest.raises(Unavailable, match="does not answer"):
        await wb.services.plan("delete", "qwen")


async def test_without_a_cluster_every_question_says_which_setting_is_missing(tmp_path):
    alone = Stack(ControlSettings(state=tmp_path / "state", kvindex_url="http://127.0.0.1:9", gateway_url="http://127.0.0.1:9"))
    await alone.start()
    async with httpx.AsyncClient(base_url=alone.url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False) as http:
        for path in (routes.SERVICES, routes.OPERATIONS, routes.AUDIT):
            answer = await http.get(path)
            assert answer.status_code == 503
            assert "kubeconfig" in answer.json()["error"]["fix"]
    await alone.stop()


async def test_a_kubeconfig_that_cannot_be_read_is_a_mistake_of_the_configuration(stack, tmp_path):
    wrong = replace(stack.settings, actions=ActionSettings(kubeconfig=tmp_path / "none"))
    async with Supervisor("control") as tasks:
        with pytest.raises(ConfigError, match="none"):
            Control(wrong, tasks)


async def test_every_operation_answers_as_the_document_says(stack, wb):
    """In an order in which each finds what it asks about."""
    asked = {"action": "set-image", "service": "qwen", "parameters": {"image": "engine:2"}}
    async with httpx.AsyncClient(base_url=stack.url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False) as http:
        document = (await http.get(routes.OPENAPI)).json()
        ids = {"make_plan": "", "plan": "", "apply": "", "operation": ""}
        bodies = {"make_plan": asked, "apply": {"confirm": "qwen"}, "abort": {"confirm": "qwen"}}
        by_name = {one.name: one for one in OPERATIONS}
        order = ["services", "service", "make_plan", "plan", "apply", "operations", "operation", "pause", "resume", "abort", "audit"]
        for name in order:
            one = by_name[name]
            found = ids["make_plan"] if name in ("plan", "apply") else ids["apply"]
            path = one.path.format(namespace="default", name="qwen", id=found)
            answer = await http.request(one.method, path, json=bodies.get(name, {}) if one.request else None)
            assert answer.status_code == 200, (name, answer.text)
            msgspec.json.decode(answer.content, type=one.response)
            described = document["paths"][one.path][one.method.lower()]
            conform(answer.json(), described["responses"]["200"]["content"]["application/json"]["schema"], document, name)
            ids[name] = answer.json().get("id", "")
        assert set(order) | {"undo"} == {name for name in vars(ActionHandlers) if not name.startswith("_")}


async def test_the_plan_stays_readable_by_its_id(stack, wb):
    plan = await wb.services.plan("scale", "qwen", role="decode", replicas=3)
    again = await wb.services.get_plan(plan.id)
    assert msgspec.to_builtins(again.plan, order="sorted") == msgspec.to_builtins(plan.plan, order="sorted")
    assert isinstance(again.plan, ActionPlan)
