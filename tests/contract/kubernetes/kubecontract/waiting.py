"""Waiting for what another process brings about."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.contract.kubernetes.kubecontract.client import Api, expect
from tests.contract.kubernetes.kubecontract.objects import NAMESPACES, Resource, pod, random_name


def eventually(check: Callable[[], bool], timeout: float = 10.0, what: str = "the condition") -> None:
    """Poll a condition which another process brings about."""
    deadline = time.monotonic() + timeout
    pause = 0.01
    while not check():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout} s"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.2)


def wait_until_served(api: Api, resource: Resource) -> None:
    """A new CRD is there when its collection answers and the discovery document names it."""

    def served() -> bool:
        document = api.get(resource.prefix)
        if document.status_code != 200 or api.get(resource.at()).status_code != 200:
            return False
        return resource.plural in {entry["name"] for entry in document.json()["resources"]}

    eventually(served, what=f"service of {resource.plural}")


def make_namespace(admin: Api) -> str:
    """A namespace in which pods can be created (servers with service accounts need a moment for that)."""
    name = random_name("ns")
    expect(admin.post(NAMESPACES.at(), NAMESPACES.body(name)), 201)
    path = f"/api/v1/namespaces/{name}/pods"
    eventually(lambda: admin.post(path, pod("probe"), dryRun="All").status_code == 201, what="a usable namespace")
    return name
