"""The objects of the laptop's cluster: every read and write, whether it comes over HTTP or from this process.

A write is: take the old state, make the new one, prune and default it, let the admission hooks look, validate, store. Everything
happens in one go on the event loop, so two writes never interleave.

In-process callers name a resource by its plural key (`pods`, `stormservices.orchestration.aibrix.ai`) and get copies that are
theirs to change. Callbacks of one event share their object: it must not be changed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from backend.core.clock import Clock, SystemClock
from backend.core.errors import NotFound
from backend.localkube.api import builtins, crds, metadata, rules, status, steps
from backend.localkube.api.kinds import Kind, Kinds
from backend.localkube.api.schema import MISSING
from backend.localkube.api.status import WRONG_TYPE, ApiError, Cause, Json
from backend.localkube.api.store import Event, Store, Stored, stored
from backend.localkube.api.writing import Deletion, Write

CRDS = rules.CRDS
DEFAULT_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_CHANGES: dict[str, Literal["added", "modified", "deleted"]] = {"ADDED": "added", "MODIFIED": "modified", "DELETED": "deleted"}

Callback = Callable[[Literal["added", "modified", "deleted"], Json], None]
Hook = Callable[[Literal["CREATE", "UPDATE", "DELETE"], Kind, Json | None, Json | None], Json | None]
"""Admission: (operation, kind, new, old) -> the object to store, or None to leave it as it is. Raises ApiError to refuse.
What it is handed must not be changed."""


class Objects:
    """All objects. `file` is where they survive; None keeps them in memory only."""

    def __init__(self, file: Path | None = None, *, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.kinds = Kinds(builtins.kinds())
        self.store = Store(file)
        self.hooks: list[Hook] = []
        for kind in self.kinds.builtin:
            self.store.load(kind.key, {"kind": kind.kind, "apiVersion": kind.api_version})
        for definition in self.store.all(CRDS):
            self._serve(definition.value)
        for name in DEFAULT_NAMESPACES:
            if self.store.get("namespaces", ("", name)) is None:
                self.create("namespaces", {"metadata": {"name": name}})

    def close(self) -> None:
        self.store.close()

    # ------------------------------------------------------------------ in-process interface

    def get(self, resource: str, namespace: str, name: str) -> Json | None:
        """The object, or None. `namespace` is "" for what is cluster-wide."""
        found = self.store.get(resource, (namespace, name))
        return _copy(found) if found is not None else None

    def list(self, resource: str, namespace: str | None = None) -> list[Json]:
        """The objects of one namespace, or of all, ordered by namespace and name."""
        return [_copy(item) for item in self.store.all(resource, namespace)]

    def create(self, resource: str, obj: Json) -> Json:
        """Store a new object; its namespace is in its metadata. Raises ApiError (409 when the name is taken)."""
        return _copy(self.add(self._kind(resource), obj.get("metadata", {}).get("namespace", ""), obj, Write()))

    def update(self, resource: str, obj: Json) -> Json:
        """Replace an object but for its status. With a resourceVersion in it, 409 when the object has changed since."""
        return self._replace(resource, obj, "")

    def update_status(self, resource: str, obj: Json) -> Json:
        """Replace an object's status and nothing else; 409 as above."""
        return self._replace(resource, obj, "status")

    def delete(self, resource: str, namespace: str, name: str, *, grace_s: int | None = None) -> None:
        """Delete an object; a bound pod is first marked, and goes when it is deleted with `grace_s=0`. Raises ApiError (404)."""
        self.remove(self._kind(resource), namespace, name, Deletion(grace_s=grace_s))

    def bind(self, namespace: str, name: str, node: str) -> None:
        """Give a pod to a node. Raises ApiError (409 when it has one)."""

        def bound(pod: Json) -> Json:
            if taken := pod["spec"].get("nodeName"):
                raise status.conflict(self._kind("pods"), name, f'pod {name} is already assigned to node "{taken}"')
            state = pod.get("status", {})
            condition = {"type": "PodScheduled", "status": "True", "lastTransitionTime": metadata.timestamp(self.clock.now())}
            others = [entry for entry in state.get("conditions", ()) if entry["type"] != "PodScheduled"]
            status_now = {**state, "conditions": [*others, condition]}
            return {**pod, "spec": {**pod["spec"], "nodeName": node}, "status": status_now}

        self.change(self._kind("pods"), namespace, name, bound, Write(trusted=True), subresource="binding")

    def subscribe(self, resource: str, callback: Callback) -> Callable[[], None]:
        """Call `callback(change, object)` synchronously after every write; what is called back ends that."""

        def told(event: Event) -> None:
            callback(_CHANGES[event.change], _copy(event.new))

        return self.store.listen(resource, told)

    def _kind(self, resource: str) -> Kind:
        kind = self.kinds.stored(resource)
        if kind is None:
            raise NotFound(f"The cluster does not serve {resource!r}.", fix="Is its CustomResourceDefinition applied?")
        return kind

    def _replace(self, resource: str, obj: Json, subresource: str) -> Json:
        kind = self._kind(resource)
        meta = obj["metadata"]
        return _copy(
            self.change(kind, meta.get("namespace", ""), meta["name"], lambda _: obj, Write(trusted=True), subresource=subresource)
        )

    # ------------------------------------------------------------------ writes

    def add(self, kind: Kind, namespace: str, body: Json, write: Write) -> Stored:
        """Create. Raises ApiError."""
        value = self._shaped(kind, body, write)
        meta = value["metadata"] = dict(value.get("metadata") or {})
        if meta.get("resourceVersion"):
            raise ApiError(500, "", "resourceVersion should not be set on objects to be created")
        self._place(kind, namespace, meta)
        for name in ("resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
            meta.pop(name, None)
        meta["uid"] = metadata.new_uid()
        meta["creationTimestamp"] = metadata.timestamp(self.clock.now())
        if kind.counts:
            meta["generation"] = 1
        if "name" not in meta and meta.get("generateName"):
            meta["name"] = self._free_name(kind, namespace, meta["generateName"])
        if kind.status:
            value.pop("status", None)
        self._complete(kind, value, new=True)
        value = self._admit("CREATE", kind, value, None, write)
        self._validate(kind, value, None, write)
        name = value["metadata"]["name"]
        if self.store.get(kind.key, (namespace, name)) is not None:
            raise status.already_exists(kind, name)
        if write.dry_run:
            return stored(value, 0)
        made = self.store.put(kind.key, value)
        if kind.key == CRDS:
            self._serve(made.value)
        return made

    def change(self, kind: Kind, namespace: str, name: str, make: Callable[[Json], Json], write: Write, *, subresource: str = "") -> Stored:
        """Update, patch or write a subresource: `make` is given the old state and answers the wanted one. Raises ApiError."""
        old = self.store.get(kind.key, (namespace, name))
        if old is None:
            raise status.not_found(kind, name)
        before = old.value
        wanted = make(before)
        wanted = {**wanted, "metadata": {**(wanted.get("metadata") or {})}}
        steps.fits(kind, namespace, name, wanted["metadata"], before["metadata"], write)
        value = self._shaped(kind, wanted, write, before)
        steps.keep(kind, value, before, subresource)
        substance = steps.substance_changed(value, before)
        if substance:
            self._complete(kind, value, new=False)
        if steps.same(value, before):
            return old
        meta = value["metadata"]
        if kind.counts and substance and steps.substance_changed(value, before):
            meta["generation"] = before["metadata"].get("generation", 1) + 1
        value = self._admit("UPDATE", kind, value, before, write)
        self._validate(kind, value, before, write)
        if write.dry_run:
            return stored(value, old.version)
        if steps.is_finished(value):
            self.store.remove(kind.key, old.key)
            self._gone(kind, before)
            return stored(value, old.version)
        made = self.store.put(kind.key, value)
        if kind.key == CRDS and subresource != "status":
            self._serve(made.value)
        return made

    def remove(self, kind: Kind, namespace: str, name: str, how: Deletion) -> tuple[Stored, bool]:
        """Delete; the last state, and whether the object is gone. Raises ApiError."""
        old = self.store.get(kind.key, (namespace, name))
        if old is None:
            raise status.not_found(kind, name)
        meta = old.value["metadata"]
        for what, wanted, found in (("UID", how.uid, meta["uid"]), ("ResourceVersion", how.version, meta["resourceVersion"])):
            if wanted and wanted != found:
                why = f"the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). " + (
                    "The object might have been deleted and then recreated" if what == "UID" else "The object might have been modified"
                )
                raise status.conflict(kind, name, why)
        self._admit("DELETE", kind, None, old.value, Write())
        marked, must_mark = self._marked(kind, old.value, how)
        if how.dry_run:
            return stored(marked, old.version), steps.is_finished(marked)
        current = old
        if must_mark and marked is not old.value:
            current = self.store.put(kind.key, marked)
        if not steps.is_finished(marked):
            return current, False
        last = self.store.remove(kind.key, old.key)
        self._gone(kind, last.value)
        return stored(marked, last.version), True

    def _marked(self, kind: Kind, old: Json, how: Deletion) -> tuple[Json, bool]:
        """`old` as one that is to go, and whether that state has to be written before it goes."""
        meta = dict(old["metadata"])
        finalizers = list(meta.get("finalizers", ()))
        wanted = {"Orphan": "orphan", "Foreground": "foregroundDeletion"}.get(how.propagation)
        if wanted and wanted not in finalizers and "deletionTimestamp" not in meta:
            finalizers.append(wanted)
        if kind.key == CRDS and crds.CLEANUP not in finalizers and "deletionTimestamp" not in meta:
            finalizers.append(crds.CLEANUP)
        if finalizers:
            meta["finalizers"] = finalizers
        grace = steps.grace(old, how.grace_s) if kind.key == "pods" else 0
        before = meta.get("deletionGracePeriodSeconds")
        if before is not None:
            if grace >= before:
                return old, False
            asked = metadata.seconds_of(meta["deletionTimestamp"]) - before
        else:
            asked = self.clock.now()
            if kind.counts:
                meta["generation"] = meta.get("generation", 1) + 1
        meta["deletionGracePeriodSeconds"] = grace
        meta["deletionTimestamp"] = metadata.timestamp(asked + grace)
        marked = {**old, "metadata": meta}
        if kind.key == "namespaces":
            marked["status"] = {**old.get("status", {}), "phase": "Terminating"}
        return marked, before is not None or not steps.is_finished(marked)

    def _gone(self, kind: Kind, last: Json) -> None:
        if kind.key == CRDS:
            spec = last["spec"]
            self.kinds.replace(f"{spec['names']['plural']}.{spec['group']}", [])

    def _serve(self, definition: Json) -> None:
        """Serve the kinds of a definition; objects that are there take the new defaults."""
        made = crds.kinds(definition)
        key = definition["metadata"]["name"]
        known = self.kinds.stored(key) is not None
        self.kinds.replace(key, made)
        kind = self._kind(key)
        if known:
            head = {"apiVersion": kind.api_version}
            self.store.reshape(key, lambda value: {**kind.schema.shape(value, "", []), **head})
        else:
            self.store.load(key, {"kind": kind.kind, "apiVersion": kind.api_version})

    # ------------------------------------------------------------------ steps of a write

    def _shaped(self, kind: Kind, body: Json, write: Write, before: Json | None = None) -> Json:
        """Pruned and defaulted; parts that are those of `before` are taken over as they are."""
        unknown: list[str] = []
        if before is None:
            value: Json = kind.schema.shape(body, "", unknown)
        else:
            fresh = {name: part for name, part in body.items() if part is not before.get(name, MISSING)}
            value = kind.schema.shape(fresh, "", unknown)
            value |= {name: part for name, part in body.items() if name not in fresh}
        value["kind"], value["apiVersion"] = kind.kind, kind.api_version
        if (stored_as := self.kinds.stored(kind.key)) is not None and kind.custom:
            value["apiVersion"] = stored_as.api_version
        warnings = [f'unknown field "{path}"' for path in unknown]
        if warnings and write.validation == "Strict":
            raise steps.undecodable(kind, value, f"strict decoding error: {', '.join(warnings)}", write)
        if write.validation == "Warn":
            write.warnings += warnings
        return value

    def _place(self, kind: Kind, namespace: str, meta: Json) -> None:
        """The namespace of a new object: the one it is posted to, which must be there and stay."""
        if not kind.namespaced:
            meta.pop("namespace", None)
            return
        if meta.setdefault("namespace", namespace) != namespace:
            raise status.bad_request("the namespace of the provided object does not match the namespace sent on the request")
        home = self.store.get("namespaces", ("", namespace))
        if home is None:
            raise status.not_found(self._kind("namespaces"), namespace)
        if "deletionTimestamp" in home.value["metadata"]:
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = Cause("NamespaceTerminating", "metadata.namespace", f"namespace {namespace} is being terminated")
            raise status.forbidden(kind, str(meta.get("name", "")), why, [cause])

    def _free_name(self, kind: Kind, namespace: str, base: str) -> str:
        for _ in range(8):
            name = metadata.generated_name(base)
            if self.store.get(kind.key, (namespace, name)) is None:
                return name
        raise ApiError(409, "AlreadyExists", f"no free name begins with {base!r}; try again", details=status.about(kind, base))

    def _complete(self, kind: Kind, value: Json, *, new: bool) -> None:
        if kind.custom:
            return
        try:
            rules.complete(kind.key, value)
            if new:
                rules.complete_new(kind.key, value)
            if kind.key == CRDS:
                crds.complete(value)
                value["status"] = crds.accepted(value, metadata.timestamp(self.clock.now()))
        except (TypeError, AttributeError, KeyError, ValueError):
            # A value of a wrong type or a field that is missing; the validation that follows says which one.
            return

    def _admit(self, operation: Literal["CREATE", "UPDATE", "DELETE"], kind: Kind, new: Json | None, old: Json | None, write: Write) -> Any:
        for hook in self.hooks:
            changed = hook(operation, kind, new, old)
            if changed is not None:
                new = self._shaped(kind, changed, write)
        return new

    def _validate(self, kind: Kind, value: Json, before: Json | None, write: Write) -> None:
        causes: list[Cause] = []
        kind.schema.check(value, "", causes, MISSING if before is None else before)
        name = str(value["metadata"].get("name", ""))
        if not kind.custom and (wrong := next((cause for cause in causes if cause.reason == WRONG_TYPE), None)):
            raise steps.undecodable(kind, value, steps.go_message(kind, wrong), write)
        if not any(cause.reason == WRONG_TYPE and cause.field.startswith("metadata") for cause in causes):
            causes += metadata.check(value["metadata"], kind.plural, None if before is None else before["metadata"])
        if not kind.custom and not causes and (before is None or steps.substance_changed(value, before)):
            causes += rules.check(kind.key, value)
            if before is not None and not write.trusted:
                causes += rules.check_change(kind.key, value, before)
        if causes:
            raise status.invalid_object(kind, name, causes)


def _copy(item: Stored) -> Json:
    """A copy that the caller may change."""
    head = {"kind": item.value.get("kind"), "apiVersion": item.value.get("apiVersion")}
    return {**head, **msgspec.json.decode(b"{" + item.tail)}
