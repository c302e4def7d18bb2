"""StormServices, their plans and operations, asynchronously; `workbench.acting` is the same for notebooks and scripts.

Nothing is changed without a plan: every `plan_...` only asks, `apply` acts.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Generator, Mapping
from pathlib import Path
from typing import Any

from backend.api import routes
from backend.api.actions import (
    Action,
    ActionPlan,
    Actor,
    ApplyRequest,
    AuditPage,
    Operation,
    OperationPage,
    Parameters,
    PlanRequest,
    ServicePage,
    ServiceView,
    Source,
    Verb,
    VerbRequest,
)
from workbench import results
from workbench._transport import Params, Transport
from workbench.errors import OperationFailed, TransientError, UsageError
from workbench.planned import OperationShown, PlanShown

POLL_S = 0.5
"""Seconds between two looks at an operation."""
PATIENCE_S = 60.0
"""Seconds that a control may be away while an operation is waited for: it goes on by itself."""
MODEL_LABEL = "model.aibrix.ai/name"
"""Label of a pod with the model that it serves."""
_VERB_PATHS: Mapping[Verb, str] = {
    "abort": routes.OPERATION_ABORT,
    "pause": routes.OPERATION_PAUSE,
    "resume": routes.OPERATION_RESUME,
    "undo": routes.OPERATION_UNDO,
}


class AsyncServices:
    """Every question and every act; the objects below are handles on it."""

    def __init__(self, transport: Transport, *, source: Source = "notebook", user: str = "") -> None:
        self._transport = transport
        self.source: Source = source
        """Kept by the audit."""
        self.user = user
        """Kept by the audit; empty: whoever runs this process."""
        self.last: results.ServicesTable | None = None

    async def table(self) -> results.ServicesTable:
        """Every StormService now."""
        self.last = results.ServicesTable((await self._transport.get(ServicePage, routes.SERVICES)).items)
        return self.last

    async def view(self, name: str) -> ServiceView:
        """One service, by `name` or `namespace/name`. Raises NotFound."""
        namespace, short = split(name)
        return await self._transport.get(ServiceView, routes.SERVICE.format(namespace=segment(namespace), name=segment(short)))

    async def plan(self, action: Action, name: str = "", *, reason: str = "", **parameters: Any) -> AsyncPlan:
        """What a change would do and cost. Raises InvalidRequest with the field's path, NotFound, StaleState."""
        namespace, short = split(name)
        asked = PlanRequest(
            action=action, namespace=namespace, service=short, parameters=Parameters(**parameters), reason=reason, by=self.actor()
        )
        return AsyncPlan(self, await self._transport.post(ActionPlan, routes.PLANS, asked))

    async def plan_create(self, manifest: Mapping[str, Any] | str | Path, *, reason: str = "") -> AsyncPlan:
        """Plan a new service from its manifest, or from a YAML or JSON file with one."""
        read = await asyncio.to_thread(read_manifest, manifest)
        namespace = (read.get("metadata") or {}).get("namespace") or "default"
        return await self.plan("create", f"{namespace}/", reason=reason, manifest=read)

    async def get_plan(self, plan_id: str) -> AsyncPlan:
        """A plan made earlier, by whomever. Raises NotFound."""
        return AsyncPlan(self, await self._transport.get(ActionPlan, routes.PLAN.format(id=segment(plan_id))))

    async def apply(self, plan_id: str, *, confirm: str = "", reason: str = "", key: str = "") -> AsyncOperation:
        """Raises StaleState for a plan that is expired or stale (it says what changed), InvalidRequest for a wrong confirmation."""
        asked = ApplyRequest(confirm=confirm, reason=reason, key=key or new_key(), by=self.actor())
        return AsyncOperation(self, await self._transport.post(Operation, routes.APPLY.format(id=segment(plan_id)), asked))

    async def operation(self, operation_id: str) -> AsyncOperation:
        return AsyncOperation(self, await self.read(operation_id))

    async def read(self, operation_id: str) -> Operation:
        """An operation as it is now. Raises NotFound."""
        return await self._transport.get(Operation, routes.OPERATION.format(id=segment(operation_id)))

    async def tell(self, operation_id: str, verb: Verb, *, confirm: str = "", reason: str = "") -> Operation:
        """pause, resume or abort. Raises StaleState where the operation cannot be told so."""
        return await self._transport.post(Operation, self._verb_path(operation_id, verb), self._verb(confirm, reason))

    async def undo(self, operation_id: str, *, reason: str = "") -> AsyncPlan:
        """The plan of the way back. Raises StaleState when the revision to go back to is gone."""
        return AsyncPlan(self, await self._transport.post(ActionPlan, self._verb_path(operation_id, "undo"), self._verb("", reason)))

    async def operations(self, limit: int = 100, *, service: str = "") -> results.OperationsTable:
        """Applied plans, newest first."""
        asked: Params = {"limit": limit, "service": "/".join(split(service)) if service else ""}
        return results.OperationsTable((await self._transport.get(OperationPage, routes.OPERATIONS, asked)).items)

    async def audit(self, limit: int = 100, *, before: str = "") -> results.AuditTable:
        """Who did what, newest first; `before` continues where `.next` of another answer ended."""
        return results.AuditTable(await self._transport.get(AuditPage, routes.AUDIT, {"limit": limit, "before": before}))

    def actor(self) -> Actor:
        return Actor(user=self.user or _user(), source=self.source)

    def _verb(self, confirm: str, reason: str) -> VerbRequest:
        return VerbRequest(confirm=confirm, reason=reason, by=self.actor())

    def _verb_path(self, operation_id: str, verb: Verb) -> str:
        return _VERB_PATHS[verb].format(id=segment(operation_id))


class AsyncPlan(PlanShown):
    """A plan that can be applied. The second `apply` of one object is the first one again."""

    def __init__(self, services: AsyncServices, plan: ActionPlan) -> None:
        super().__init__(plan)
        self._services = services
        self._key = new_key()

    async def apply(self, confirm: str = "", *, reason: str = "") -> AsyncOperation:
        """Apply it as it was shown. Raises StaleState when it is expired or stale, InvalidRequest for a wrong confirmation."""
        return await self._services.apply(self.id, confirm=confirm, reason=reason, key=self._key)


class AsyncOperation(OperationShown):
    """An applied plan. Awaiting it waits for its end."""

    def __init__(self, services: AsyncServices, last: Operation) -> None:
        super().__init__(last)
        self._services = services
        self._aborted_here = False

    async def refresh(self) -> AsyncOperation:
        self.last = await self._services.read(self.id)
        return self

    async def changes(self) -> AsyncIterator[Operation]:
        """The operation now and after every change, until it has ended. A control that restarts in between is waited for."""
        away_s = 0.0
        yield self.last
        while self.last.active:
            await asyncio.sleep(POLL_S)
            before = self.last
            try:
                await self.refresh()
                away_s = 0.0
            except TransientError:
                away_s += POLL_S
                if away_s >= PATIENCE_S:
                    raise
            if self.last != before:
                yield self.last

    async def wait(self, timeout: float | None = None) -> AsyncOperation:
        """Until it has ended; cancelling cancels the waiting only. Raises OperationFailed, TimeoutError."""
        async with asyncio.timeout(timeout):
            async for _ in self.changes():
                pass
        return self.check()

    def check(self) -> AsyncOperation:
        """Itself, unless it failed or somebody else aborted it. Raises OperationFailed."""
        if self.state == "failed" or (self.state == "aborted" and not self._aborted_here):
            fix = f"Possible now: {', '.join(self.last.verbs)}." if self.last.verbs else ""
            raise OperationFailed(f"{self.last.summary} of {self.last.service} {self.state}: {self.last.message}", fix=fix)
        return self

    async def pause(self, *, reason: str = "") -> AsyncOperation:
        return await self._tell("pause", reason=reason)

    async def resume(self, *, reason: str = "") -> AsyncOperation:
        return await self._tell("resume", reason=reason)

    async def abort(self, confirm: str = "", *, reason: str = "") -> AsyncOperation:
        """Stop and revert to the spec before; `confirm` is the service's name."""
        self._aborted_here = True
        return await self._tell("abort", confirm=confirm, reason=reason)

    async def undo(self, *, reason: str = "") -> AsyncPlan:
        """The plan of the way back; apply it as any other."""
        return await self._services.undo(self.id, reason=reason)

    async def _tell(self, verb: Verb, *, confirm: str = "", reason: str = "") -> AsyncOperation:
        self.last = await self._services.tell(self.id, verb, confirm=confirm, reason=reason)
        return self

    def __await__(self) -> Generator[Any, None, AsyncOperation]:
        return self.wait().__await__()


def split(name: str) -> tuple[str, str]:
    """Namespace and name.

    >>> split("qwen"), split("prod/qwen")
    (('default', 'qwen'), ('prod', 'qwen'))
    """
    namespace, slash, short = name.partition("/")
    return (namespace or "default", short) if slash else ("default", name)


def models_of(manifest: Mapping[str, Any]) -> list[str]:
    """Models that a StormService's pods serve, each once, in the order of its roles.

    >>> models_of({"spec": {"template": {"spec": {"roles": [{"template": {"metadata": {"labels": {MODEL_LABEL: "qwen3-8b"}}}}]}}}})
    ['qwen3-8b']
    """
    roles = _inside(manifest, "spec", "template", "spec").get("roles") or []
    named = [_inside(role, "template", "metadata", "labels").get(MODEL_LABEL) for role in roles]
    return list(dict.fromkeys(str(model) for model in named if model))


def _inside(manifest: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The object at `path`; empty where a part is absent or null."""
    for name in path:
        manifest = manifest.get(name) or {}
    return manifest


def segment(text: str) -> str:
    """A name as one segment of a path."""
    from urllib.parse import quote

    if not text:
        raise UsageError("A name is empty.", fix="Give the service's name, or the id of the plan or operation.")
    return quote(text, safe="")


def new_key() -> str:
    import secrets

    return secrets.token_hex(8)


def read_manifest(given: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """One object from YAML or JSON. Raises UsageError with file, line and column."""
    if isinstance(given, Mapping):
        return dict(given)
    import yaml

    try:
        documents = [one for one in yaml.safe_load_all(Path(given).read_text()) if one is not None]
    except OSError as error:
        raise UsageError(f"{given} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{given} is not YAML: {' '.join(str(error).split())}.") from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise UsageError(f"{given} holds {len(documents)} documents.", fix="Give a file with one StormService.")
    return documents[0]


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # a container's user without a name
        return ""
