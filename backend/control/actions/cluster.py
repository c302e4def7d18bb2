"""The pipeline's way to a Kubernetes API server: direct reads for decisions, informers for watching. Decides nothing.

Errors of the server become errors of our tree that tell an operator what to do: definitions that are missing, rights that are too small,
fields that are wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

from backend.api.actions import Manifest
from backend.control.actions import objects
from backend.control.actions.model import ClusterState
from backend.core.errors import InvalidRequest, StaleState, Unavailable
from backend.core.supervise import Supervisor
from backend.kube.client import KubeClient
from backend.kube.errors import ApiConflict, ApiForbidden, ApiInvalid, ApiNotFound
from backend.kube.informer import Informer
from backend.kube.resources import CONTROLLER_REVISIONS, POD_SETS, PODS, ROLE_SETS, STORM_SERVICES

LOOK_S = 2.0
"""Seconds between two looks without a change: limits on time must be noticed too."""
COALESCE_S = 0.05
"""Changes that come together are one look."""
FOLLOWED = (STORM_SERVICES, ROLE_SETS, PODS)
Key = tuple[str, str]


class KubeCluster:
    """See `backend.control.actions.model.Cluster`. `start` begins to follow; the client is the caller's to close."""

    def __init__(self, client: KubeClient, tasks: Supervisor) -> None:
        self._client, self._tasks = client, tasks
        self._informers = {
            resource: Informer(
                client,
                resource,
                labels="" if resource is STORM_SERVICES else objects.SERVICE_LABEL,
                indexes={"service": lambda one: [_owner(one)]},
            )
            for resource in FOLLOWED
        }
        self._changed: defaultdict[Key, set[asyncio.Event]] = defaultdict(set)

    @classmethod
    def connect(cls, kubeconfig: Path | None, context: str, tasks: Supervisor) -> KubeCluster:
        """Raises ConfigError for a kubeconfig that cannot be used."""
        return cls(KubeClient.from_kubeconfig(kubeconfig, context or None), tasks)

    def start(self) -> None:
        for resource, informer in self._informers.items():
            informer.add_handler(lambda _, old, new: self._notice(old or new or {}))
            self._tasks.start(f"follow {resource.plural}", informer.run)

    async def close(self) -> None:
        await self._client.close()

    async def observe(self, namespace: str, name: str) -> ClusterState:
        mine = f"{objects.SERVICE_LABEL}={name}"
        with self._explained():
            service = await self._get(namespace, name)
            rolesets = await self._client.list(ROLE_SETS, namespace, labels=mine)
            pods = await self._client.list(PODS, namespace, labels=mine)
            revisions = await self._client.list(CONTROLLER_REVISIONS, namespace, labels=f"name={name}")
            try:
                podsets = (await self._client.list(POD_SETS, namespace, labels=mine)).items
            except ApiNotFound:
                # A cluster of an early version has no PodSets, hence none of them belongs to the service.
                podsets = []
        uid = objects.metadata(service or {}).get("uid")
        return ClusterState(
            namespace, name, service, rolesets.items, pods.items, [one for one in revisions.items if _owned(one, uid)], podsets
        )

    async def overview(self) -> Sequence[ClusterState]:
        services = self._informers[STORM_SERVICES]
        if self._current:
            found = services.list()
        else:
            with self._explained():
                found = (await self._client.list(STORM_SERVICES)).items
        keys = sorted((str(objects.metadata(one).get("namespace", "")), str(objects.metadata(one).get("name", ""))) for one in found)
        return [self._copy(*key) if self._current else await self.observe(*key) for key in keys]

    async def create(self, manifest: Manifest, *, dry_run: bool = False) -> Manifest:
        with self._explained():
            return await self._client.create(STORM_SERVICES, objects.metadata(manifest).get("namespace"), manifest, dry_run=dry_run)

    async def patch(self, namespace: str, name: str, patch: Manifest, *, dry_run: bool = False) -> Manifest:
        with self._explained():
            return await self._client.patch(STORM_SERVICES, namespace, name, patch, kind="merge", dry_run=dry_run)

    async def delete(self, namespace: str, name: str) -> None:
        with self._explained(), contextlib.suppress(ApiNotFound):
            await self._client.delete(STORM_SERVICES, namespace, name)

    async def follow(self, namespace: str, name: str) -> AsyncIterator[ClusterState]:
        changed = asyncio.Event()
        waiting = self._changed[namespace, name]
        waiting.add(changed)
        try:
            while True:
                changed.clear()
                yield self._copy(namespace, name) if self._current else await self.observe(namespace, name)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await changed.wait()
                await asyncio.sleep(COALESCE_S)
        finally:
            waiting.discard(changed)

    @property
    def _current(self) -> bool:
        """Whether the copies can be looked at instead of the cluster."""
        return all(informer.synced.is_set() and not informer.problem for informer in self._informers.values())

    def _copy(self, namespace: str, name: str) -> ClusterState:
        key = f"{namespace}/{name}"
        return ClusterState(
            namespace,
            name,
            self._informers[STORM_SERVICES].get(namespace, name),
            self._informers[ROLE_SETS].by_index("service", key),
            self._informers[PODS].by_index("service", key),
        )

    async def _get(self, namespace: str, name: str) -> Manifest | None:
        try:
            return await self._client.get(STORM_SERVICES, namespace, name)
        except ApiNotFound as error:
            if not _names_object(error):
                raise
            return None

    def _notice(self, changed: Manifest) -> None:
        namespace, _, name = _owner(changed).partition("/")
        for event in self._changed.get((namespace, name), ()):
            event.set()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ApiNotFound as error:
            if _names_object(error):
                raise
            raise Unavailable(
                f"The cluster at {self._client.access.server} does not know {STORM_SERVICES.full_name}: {error.message}",
                fix="Install the definitions: kubectl apply -f backend/manifests/crds.",
            ) from error
        except ApiForbidden as error:
            raise Unavailable(f"The cluster refuses us: {error.message}", fix=error.fix) from error
        except ApiInvalid as error:
            field = error.causes[0].field if error.causes else ""
            raise InvalidRequest(error.message, param=field, fix=f"Correct {field}." if field else "Correct the object.") from error
        except ApiConflict as error:
            raise StaleState(error.message, fix="Somebody was faster. Plan again and look at it.") from error


def _owner(manifest: Manifest) -> str:
    """`namespace/name` of the StormService that an object is, or belongs to."""
    about = objects.metadata(manifest)
    name = about.get("name", "") if manifest.get("kind") == objects.KIND else objects.label(manifest, objects.SERVICE_LABEL)
    return f"{about.get('namespace', '')}/{name}"


def _names_object(error: ApiNotFound) -> bool:
    """Whether one object is missing, or its namespace; else the server does not know its kind at all."""
    return error.reason == "NotFound" and '"' in error.message


def _owned(revision: Manifest, uid: object) -> bool:
    return any(one.get("uid") == uid for one in objects.metadata(revision).get("ownerReferences") or [])
