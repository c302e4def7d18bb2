"""Fixtures of the Kubernetes contract: the server under test, a fresh namespace per test, the shared CRD.

The server is the laptop's, started once as a process; CONTRACT_SERVER or CONTRACT_KUBECONFIG names another one, which must pass too.
"""

from __future__ import annotations

import contextlib
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.contract.kubernetes.kubecontract.client import Api, Json, Target, expect, target_from_environment, target_from_kubeconfig
from tests.contract.kubernetes.kubecontract.kubectl import kubectl_binary
from tests.contract.kubernetes.kubecontract.objects import CRDS, NAMESPACES, WIDGETS, crd
from tests.contract.kubernetes.kubecontract.waiting import eventually, make_namespace, wait_until_served
from tests.contract.kubernetes.not_yet import DESELECTED

HERE = Path(__file__).parent
MARKERS = {
    "kcm": "needs the controllers of kube-controller-manager that the laptop's cluster has not (disruption, deployments)",
    "kubelet": "needs a node that really runs pods",
    "webhook": "the API server must call an HTTPS server of this process",
    "kubectl": "needs a kubectl binary",
    "rbac": "needs a user without any rights",
    "compaction": "needs the etcd behind the server",
    "slow": "takes two seconds or more by its nature (timeouts of the protocol)",
}
LEFT_OUT = ("kubelet", "webhook", "rbac", "compaction")
"""Markers of what the laptop's cluster does not have; their tests run against other servers only."""


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, without a skip, what the laptop's cluster has not; kubectl's tests where there is no kubectl."""
    ours = target_from_environment() is None
    dropped = []
    for item in items:
        if HERE not in item.path.parents:
            continue
        name = f"{item.path.name}::{item.name}"
        left_out = ours and (name in DESELECTED or any(item.get_closest_marker(marker) for marker in LEFT_OUT))
        if left_out or (item.get_closest_marker("kubectl") and kubectl_binary() is None):
            dropped.append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    if (other := target_from_environment()) is not None:
        yield other
        return
    state = tmp_path_factory.mktemp("cluster")
    process = subprocess.Popen([sys.executable, "-m", "backend.localkube.api", "--state", str(state)], stderr=subprocess.DEVNULL)
    kubeconfig = state / "kubeconfig"
    try:
        deadline = time.monotonic() + 20
        while not kubeconfig.exists():
            assert process.poll() is None, "the API server ended"
            assert time.monotonic() < deadline, "the API server did not start"
            time.sleep(0.02)
        yield target_from_kubeconfig(kubeconfig)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def admin(target: Target) -> Iterator[Api]:
    """The connection of the fixtures."""
    api = Api(target)
    yield api
    api.close()


@pytest.fixture(scope="session")
def api(target: Target) -> Iterator[Api]:
    """The connection of the tests."""
    api = Api(target)
    yield api
    api.close()


@pytest.fixture(scope="session")
def widgets_crd(admin: Api) -> Iterator[Json]:
    """The CRD `widgets.contract.dev`, served."""
    body = crd()
    name = body["metadata"]["name"]
    if admin.get(CRDS.at(name=name)).status_code == 200:
        admin.delete(CRDS.at(name=name))
        eventually(lambda: admin.get(CRDS.at(name=name)).status_code == 404, what="removal of an old CRD")
    expect(admin.post(CRDS.at(), body), 201)
    wait_until_served(admin, WIDGETS)
    yield expect(admin.get(CRDS.at(name=name)))
    admin.delete(CRDS.at(name=name))


@pytest.fixture(scope="session")
def namespaces(admin: Api) -> Iterator[Callable[[], str]]:
    """Makes namespaces ahead of the tests; removes all at the end, when their removal disturbs no test any more."""
    made: list[str] = []
    ready: queue.Queue[str | Exception] = queue.Queue(maxsize=4)
    done = threading.Event()

    def produce() -> None:
        while not done.is_set():
            try:
                made.append(make_namespace(admin))
                ready.put(made[-1])
            except Exception as error:  # noqa: BLE001  handed to the test that takes it
                ready.put(error)

    def take() -> str:
        item = ready.get(timeout=20)
        if isinstance(item, Exception):
            raise item
        return item

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    yield take
    done.set()
    while producer.is_alive():
        with contextlib.suppress(queue.Empty):
            ready.get(timeout=0.1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: admin.delete(NAMESPACES.at(name=name)), made))


@pytest.fixture
def ns(namespaces: Callable[[], str]) -> str:
    """A fresh namespace."""
    return namespaces()


@pytest.fixture
def other_ns(namespaces: Callable[[], str]) -> str:
    """A second fresh namespace."""
    return namespaces()


@pytest.fixture
def nobody(target: Target) -> Iterator[Api]:
    """A connection of a user without any rights."""
    import os

    connection = Api(target.with_token(os.environ["CONTRACT_NOBODY_TOKEN"]))
    yield connection
    connection.close()


@pytest.fixture
def stranger(target: Target) -> Iterator[Callable[[str | None], Api]]:
    """Connections with any token."""
    opened: list[Api] = []

    def connect(token: str | None) -> Api:
        opened.append(Api(Target(target.server, token, target.verify)))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()
