"""A fake control API and completions server, with a workbench on them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import workbench
from tests.fakes.completions import completions
from tests.fakes.control_api import control


@pytest.fixture
def fake():
    with control() as running:
        yield running


@pytest.fixture
def wb(fake):
    with workbench.connect(fake.url, token=fake.token) as connected:
        yield connected


@pytest.fixture
def stack(fake, wb):
    """What docstrings call `stack`: a running stack, whose gateway answers too."""
    from backend.api.endpoints import Endpoints

    with completions() as gateway:
        wb._core.target = type(wb._core.target)(fake.url, fake.token, Endpoints(state="demo", pid=1, control=fake.url, gateway=gateway.url))
        yield SimpleNamespace(url=fake.url, token=fake.token, workbench=wb, decision_id="r1", gateway=gateway)
