"""The fleet's table while its writer is in the middle of it, or died there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from backend.api.fleet import Pod
from backend.core.settings import GatewaySettings
from backend.gateway.counts import Counts
from backend.gateway.fleet_table import FleetReader, FleetTable
from backend.gateway.service import Gateway

A, B = (Pod(name=name, ip="127.0.0.1", model="m", ready=True) for name in "ab")


def half_written(table: FleetTable) -> None:
    """As a writer leaves it that is killed between its two marks."""
    table._file.words[0] += 1
    table._bytes[4096:4100] = b"\xff\xff\xff\xff"


def test_a_table_that_is_being_written_is_not_waited_for(tmp_path: Path) -> None:
    table = FleetTable(tmp_path)
    table.write([A])
    reader = FleetReader(tmp_path)
    assert reader.read() is not None
    half_written(table)
    assert reader.read() is None
    reader.close()
    table.close()


async def test_a_master_killed_while_it_writes_leaves_the_fleet_as_it_was_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counts, table = Counts(tmp_path, create=True), FleetTable(tmp_path)
    table.write([A])
    gateway = Gateway(GatewaySettings(shared=tmp_path), tmp_path, 0)
    half_written(table)
    for _ in range(100):
        gateway.refresh_fleet()
    assert gateway.targets.models["m"].names == ["a"]
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    table.close()
    successor = FleetTable(tmp_path)
    successor.write([A, B])
    gateway.refresh_fleet()
    assert gateway.targets.models["m"].names == ["a", "b"]
    await gateway.close()
    successor.close()
    counts.close()
