"""One stack for the notebooks: real parts, two small engines, no dashboard and no traffic but the notebook's own."""

from __future__ import annotations

import pytest

from tests.fakes.stack import own_stack


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    with own_stack(tmp_path_factory.mktemp("notebooks"), "--no-dashboard", "--no-traffic", pods=2, speed=20.0) as running:
        yield running
