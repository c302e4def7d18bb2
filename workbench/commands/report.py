"""`workbench report`: a report's files in a folder, made from what a running stack's control API tells."""

from __future__ import annotations

import argparse
from pathlib import Path

from workbench.commands import _output, look


def run(arguments: argparse.Namespace) -> int:
    with look.connect(arguments) as workbench:
        made = workbench.reports.make(arguments.report, since=arguments.since, until=arguments.until)
    files = made.save(arguments.out)
    data = {
        "report": made.report.name,
        "since": made.report.window.since,
        "until": made.report.window.until,
        "facts": made.facts,
        "problems": made.problems,
        "files": [str(path) for path in files],
    }
    _output.show(arguments, data, f"{made!r}\n\n{_written(files)}")
    return 0


def _written(files: list[Path]) -> str:
    page, *others = files
    return f"{page}, with the same numbers in {len(others)} JSON and Parquet files beside it."
