"""The stacks of the notebooks: real parts, small engines, no dashboard and no traffic but the notebook's own."""

from __future__ import annotations

import pytest

from backend.launch.manifests import SAMPLE
from tests.fakes.stack import own_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with own_stack(tmp_path_factory.mktemp("notebooks"), "--no-dashboard", "--no-traffic", pods=2, speed=20.0) as running:
        yield running


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A stack whose fleet is made of StormServices."""
    with own_stack(tmp_path_factory.mktemp("cluster"), "--no-dashboard", "--no-traffic", fleet=SAMPLE) as running:
        yield running
