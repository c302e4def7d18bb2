"""StormServices to plan for, and a cluster in virtual time that carries the plans out and keeps a log of what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from backend.storm import Create, Delete, Plan, names
from backend.storm.merge import merge
from backend.storm.pods import Pod, read_pod
from backend.storm.preview import pass_once
from backend.storm.virtual import VirtualCluster

START = 1_700_000_000.0
TICK_S = 0.05


def role(name: str, replicas: int | None = 1, *, image: str = "engine:v1", **fields: Any) -> dict[str, Any]:
    """A role; budgets go in as `surge` and `unavailable`, everything else under its own name."""
    strategy = {"maxSurge": fields.pop("surge", None), "maxUnavailable": fields.pop("unavailable", None)}
    entry: dict[str, Any] = {"name": name, "template": {"spec": {"containers": [{"name": "engine", "image": image}]}}, **fields}
    if replicas is not None:
        entry["replicas"] = replicas
    if any(value is not None for value in strategy.values()):
        entry["updateStrategy"] = {key: value for key, value in strategy.items() if value is not None}
    return entry


def storm_service(
    *roles: dict[str, Any],
    name: str = "svc",
    namespace: str = "default",
    replicas: int | None = 1,
    in_place: bool = False,
    order: str = "Sequential",
    surge: int | str | None = None,
    unavailable: int | str | None = None,
    **spec: Any,
) -> dict[str, Any]:
    strategy = {"type": "InPlaceUpdate" if in_place else "RollingUpdate", "maxSurge": surge, "maxUnavailable": unavailable}
    body: dict[str, Any] = {
        "selector": {"matchLabels": {"app": name}},
        "updateStrategy": {key: value for key, value in strategy.items() if value is not None},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"updateStrategy": order, "roles": list(roles)}},
        **spec,
    }
    if replicas is not None:
        body["replicas"] = replicas
    meta = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "generation": 1}
    return {"apiVersion": names.API_VERSION, "kind": "StormService", "metadata": meta, "spec": body}


class PodRules:
    """How pods behave: each second by default, never ready where `broken` says so."""

    def __init__(self, start_s: float = 1.0, end_s: float = 0.5) -> None:
        self.start, self.end = start_s, end_s
        self.broken: Callable[[Pod, str], bool] = lambda pod, image: False

    def start_s(self, pod: Mapping[str, Any]) -> float | None:
        return None if self.broken(read_pod(pod), image_of(pod)) else self.start

    def end_s(self, pod: Mapping[str, Any]) -> float:
        return self.end


def image_of(pod: Mapping[str, Any]) -> str:
    return str(pod["spec"]["containers"][0]["image"])


class StormWorld:
    """One StormService in a virtual cluster. Every pass is checked by `on_pass`; `log` has (seconds, sign, kind, role, image) lines."""

    def __init__(self, service: dict[str, Any], rules: Any = None) -> None:
        self.rules = rules or PodRules()
        self.cluster = VirtualCluster(self.rules, START)
        self.cluster.adopt(names.STORM_SERVICES, [service])
        self.name = service["metadata"]["name"]
        self.log: list[tuple[float, str, str, str, str]] = []
        self.on_pass: list[Callable[[StormWorld, Plan], None]] = []
        self.last: Plan = Plan()
        self.low: dict[str, int] = {}
        self.high: dict[str, int] = {}

    @property
    def service(self) -> dict[str, Any]:
        return self.cluster.objects[names.STORM_SERVICES][self.name]

    @property
    def pods(self) -> list[Pod]:
        return [read_pod(item) for item in self.cluster.list(names.PODS)]

    @property
    def role_sets(self) -> list[dict[str, Any]]:
        return self.cluster.list(names.ROLE_SETS)

    def conditions(self) -> dict[str, tuple[str, str, str]]:
        return {item["type"]: (item["status"], item["reason"], item["message"]) for item in self.service["status"]["conditions"]}

    @property
    def ready(self) -> bool:
        """What the service says about its present generation."""
        status = self.service.get("status") or {}
        return status.get("observedGeneration") == self.service["metadata"]["generation"] and self.conditions()["Ready"][0] == "True"

    def edit(self, **spec: Any) -> None:
        """Merge into the specification, as a user would."""
        meta = {**self.service["metadata"], "generation": self.service["metadata"]["generation"] + 1}
        self.cluster.objects[names.STORM_SERVICES][self.name] = {**merge(self.service, {"spec": spec}), "metadata": meta}
        self.low, self.high = {}, {}

    def edit_roles(self, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        """Change each role of the template; None takes it out."""
        roles = [changed for item in self.service["spec"]["template"]["spec"]["roles"] if (changed := change(item)) is not None]
        self.edit(template={"spec": {"roles": roles}})

    def set_image(self, image: str, *only: str) -> None:
        def changed(item: dict[str, Any]) -> Any:
            if only and item["name"] not in only:
                return item
            containers = [{**container, "image": image} for container in item["template"]["spec"]["containers"]]
            return merge(item, {"template": {"spec": {"containers": containers}}})

        self.edit_roles(changed)

    def delete(self) -> None:
        self.cluster.perform(Delete(names.STORM_SERVICES, "default", self.name, self.service["metadata"]["uid"], "by hand"))

    def set_pod(self, name: str, *, ready: bool | None = None, phase: str = "Running", **meta: Any) -> None:
        """Do something to a pod that no plan did."""
        pod = self.cluster.objects[names.PODS][name]
        conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
        self.cluster.objects[names.PODS][name] = {
            **pod,
            "metadata": {**pod["metadata"], **meta},
            "status": {"phase": phase, "conditions": conditions},
        }

    def step(self) -> bool:
        """One pass; True when it did something."""
        before = {pod.name: pod for pod in self.pods}
        images = {item["metadata"]["name"]: image_of(item) for item in self.cluster.list(names.PODS)}
        result = pass_once(self.cluster, self.name)
        self.last = result or Plan()
        for action in self.last.actions:
            self._note(action, before, images)
        for check in self.on_pass:
            check(self, self.last)
        self._limits()
        return bool(self.last.actions)

    def _note(self, action: Any, before: dict[str, Pod], images: dict[str, str]) -> None:
        at = round(self.cluster.now - START, 2)
        if isinstance(action, Create) and action.resource == names.PODS:
            self.log.append((at, "+", "pod", action.object["metadata"]["labels"][names.ROLE_LABEL], image_of(action.object)))
        elif isinstance(action, Delete) and action.resource == names.PODS:
            self.log.append((at, "-", "pod", before[action.name].role, images[action.name]))
        elif isinstance(action, Create | Delete) and action.resource == names.ROLE_SETS:
            self.log.append((at, "+" if isinstance(action, Create) else "-", "group", "", ""))

    def _limits(self) -> None:
        ready, standing = Counter[str](), Counter[str]()
        for pod in self.pods:
            ready[pod.role] += pod.ready
            standing[pod.role] += not pod.over
        ready["group"] = int((self.service.get("status") or {}).get("readyReplicas", 0)) if self.name in self._services() else 0
        standing["group"] = len(self.role_sets)
        for key in {*ready, *self.low}:
            self.low[key] = min(self.low.get(key, 1 << 30), ready[key])
        for key in {*standing, *self.high}:
            self.high[key] = max(self.high.get(key, 0), standing[key])

    def _services(self) -> dict[str, Any]:
        return self.cluster.objects[names.STORM_SERVICES]

    def run(self, seconds: float | None = None, *, passes: int = 5000) -> StormWorld:
        """Pass after pass until nothing moves any more, or for exactly `seconds`."""
        until = None if seconds is None else self.cluster.now + seconds
        for _ in range(passes):
            if self.name in self._services() and self.step():
                continue
            due = self.cluster.next_change()
            if due is None or (until is not None and due > until):
                self.cluster.advance(until if until is not None else self.cluster.now)
                return self
            self.cluster.advance(due)
        raise AssertionError(f"nothing settled in {passes} passes; waiting for {self.last.waiting}")
