"""`python -m backend.launch`: a stack with plain text lines for progress. `workbench up` is the same with a bar and links."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from backend.core.errors import UsageError, WorkbenchError
from backend.core.settings import PORT_BASE
from backend.launch import stack
from backend.launch.options import DEFAULT_STATE, Progress, UpOptions


def main(given: list[str] | None = None) -> int:
    try:
        stack.up(options(given), _say)
    except WorkbenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def options(given: list[str] | None = None) -> UpOptions:
    """Options of a command line. The same words as `workbench up` takes."""
    parser = argparse.ArgumentParser(prog="python -m backend.launch", description=__doc__)
    add_arguments(parser)
    return from_namespace(parser.parse_args(given))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `up`, for whoever builds a command line."""
    parser.add_argument("--state", type=Path, default=DEFAULT_STATE, help="folder for state, logs and history (default: %(default)s)")
    parser.add_argument("--port-base", type=int, default=PORT_BASE, help="first port; the others follow (default: %(default)s)")
    parser.add_argument("--fleet", type=Path, help="fleet file (YAML); default: three StormServices of simulated engines, eight pods")
    parser.add_argument("--workers", type=int, default=2, help="gateway worker processes (default: %(default)s)")
    parser.add_argument("--no-dashboard", action="store_true", help="leave the dashboard out")
    parser.add_argument("--no-traffic", action="store_true", help="leave the demo's gentle replay out")
    parser.add_argument("--exit-after", type=float, metavar="SECONDS", help="end by itself this long after it became ready")


def from_namespace(found: argparse.Namespace) -> UpOptions:
    """UpOptions from parsed arguments. Raises UsageError."""
    if not 1 <= found.workers <= 64:
        raise UsageError(f"--workers must lie between 1 and 64, not at {found.workers}.")
    return UpOptions(
        state=found.state,
        port_base=found.port_base,
        fleet=found.fleet,
        workers=found.workers,
        dashboard=not found.no_dashboard,
        traffic=not found.no_traffic,
        exit_after_s=found.exit_after,
    )


def arguments(chosen: UpOptions, state: Path) -> list[str]:
    """`options` backwards: the words that give `chosen` at `state`."""
    words = ["--state", str(state), "--port-base", str(chosen.port_base), "--workers", str(chosen.workers)]
    if chosen.fleet is not None:
        words += ["--fleet", str(chosen.fleet)]
    if chosen.exit_after_s is not None:
        words += ["--exit-after", str(chosen.exit_after_s)]
    return words + ["--no-dashboard"] * (not chosen.dashboard) + ["--no-traffic"] * (not chosen.traffic)


def _say(progress: Progress) -> None:
    where = f"{progress.part}: " if progress.part else ""
    print(f"[{progress.done}/{progress.total}] {where}{progress.kind}{f' - {progress.text}' if progress.text else ''}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
