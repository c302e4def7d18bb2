"""A report as files of a folder: NAME.html, NAME.json and one NAME-TABLE.parquet a table, each replaced in one step."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from workbench.errors import DiskFull, StateFolderError
from workbench.reports import page
from workbench.reports.model import Report

FORMAT = 1
"""Of the JSON file; grows when a field changes its meaning."""


def write(report: Report, folder: Path) -> list[Path]:
    """The files written, the page first. Raises DiskFull or StateFolderError."""
    document, data = page.html(report).encode(), msgspec.json.format(msgspec.json.encode(as_data(report)), indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = [_replace(folder / f"{report.name}.html", lambda path: path.write_bytes(document))]
        files.append(_replace(folder / f"{report.name}.json", lambda path: path.write_bytes(data)))
        for name, table in report.tables.items():
            files.append(_replace(folder / f"{report.name}-{name.replace('_', '-')}.parquet", table.write_parquet))
    except OSError as error:
        if error.errno == 28:
            raise DiskFull(f"No room left to write the report to {folder}.", fix="Free some space, or choose another --out.") from error
        raise StateFolderError(
            f"The report cannot be written to {folder}: {error.strerror or error}.", fix="Choose another folder with --out."
        ) from error
    return files


def as_data(report: Report) -> dict[str, Any]:
    """What the JSON file holds: headline facts, what could not be read, and every table as rows."""
    return {
        "format": FORMAT,
        "report": report.name,
        "since": _iso(report.window.since),
        "until": _iso(report.window.until),
        "made_at": _iso(report.made_at),
        "facts": report.facts,
        "problems": report.problems,
        "tables": {name: table.to_dicts() for name, table in report.tables.items()},
    }


def _replace(path: Path, fill: Callable[[Path], object]) -> Path:
    """Write beside it, then rename: who opens it sees the old or the new one whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fill(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()
