"""The `workbench` command. Parses; what it does stands in `workbench.commands`.

`up down status replay explain probe report`, and those that act: `plan apply scale pause resume abort undo`.

Exit codes: 0 done, 1 failed, 2 wrong usage. Errors are one to three lines on stderr; WORKBENCH_DEBUG=1 adds the traceback.
Each command's code is imported when it is chosen, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from workbench import __version__
from workbench.commands.options import add_acting

DONE, FAILED, USAGE = 0, 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return int(importlib.import_module(f"workbench.commands.{arguments.module}").run(arguments))
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # Whoever read our output (`| head`) has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001  the command line is one of the four edges
        return _failed(error)


def _failed(error: Exception) -> int:
    from workbench.errors import UsageError, WorkbenchError

    if os.environ.get("WORKBENCH_DEBUG"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, (WorkbenchError, OSError)):
        print(f"workbench: {error}", file=sys.stderr)
    else:
        print(f"workbench: unexpected {type(error).__name__}: {error}\nWORKBENCH_DEBUG=1 shows where.", file=sys.stderr)
    return USAGE if isinstance(error, UsageError) else FAILED


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    root = argparse.ArgumentParser(prog="workbench", description="Operations workbench for LLM serving fleets.")
    root.add_argument("--version", action="version", version=f"workbench {__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _up(commands)
    _down(commands)
    _status(commands)
    _replay(commands)
    _explain(commands)
    _probe(commands)
    _report(commands)
    add_acting(lambda name, text: _add(commands, name, "act", text), _natural)
    return root


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def _add(commands: Commands, name: str, module: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.set_defaults(command=name, module=module)
    command.add_argument(
        "--state", type=Path, metavar="DIR", help="state folder (default: $WORKBENCH_STATE, else the nearest .workbench upwards)"
    )
    return command


def _up(commands: Commands) -> None:
    up = _add(commands, "up", "stack", "Start a stack in the foreground: engines, router, index, control API, dashboard.")
    up.add_argument("--port-base", type=_port, metavar="N", help="first of the stack's ports (default 18800)")
    up.add_argument("--fleet", type=Path, metavar="FILE", help="fleet file (YAML): which pods to run")
    up.add_argument("--workers", type=_positive, metavar="W", help="gateway workers (default 2)")
    up.add_argument("--no-dashboard", action="store_true", help="do not start the dashboard")
    up.add_argument("--no-traffic", action="store_true", help="do not send the demo's gentle traffic")
    up.add_argument("--exit-after", type=_seconds, metavar="SECONDS", help="end the stack this long after it was ready")


def _down(commands: Commands) -> None:
    _add(commands, "down", "stack", "End the running stack of a state folder.")


def _status(commands: Commands) -> None:
    status = _add(commands, "status", "stack", "Show what runs: processes, addresses, pods, findings.")
    _json(status)


def _replay(commands: Commands) -> None:
    replay = _add(commands, "replay", "replay", "Send a trace's requests through the gateway and measure.")
    replay.add_argument("trace", metavar="TRACE", help="Mooncake JSON lines file (.gz too), or a packaged name: conversation-sample")
    replay.add_argument("--speed", type=_seconds, default=1.0, metavar="X", help="10 sends ten trace seconds in one (default 1)")
    replay.add_argument("--limit", type=_positive, metavar="N", help="requests at most (default: the whole trace)")
    replay.add_argument("--offset", type=_natural, default=0, metavar="N", help="requests to pass over first")
    replay.add_argument("--repeat", type=_natural, default=1, metavar="N", help="rounds, 0 for ever (default 1)")
    replay.add_argument("--rate", type=_seconds, default=0.0, metavar="R", help="requests a second at most (default: as the trace says)")
    replay.add_argument("--policy", default="", help="routing policy to ask for (default: the gateway's)")
    replay.add_argument("--model", default="", help="model to ask for (default: the only one served)")
    replay.add_argument("--url", default="", help="gateway's address (default: the running stack's)")
    replay.add_argument("--token", default="", help="bearer token of the gateway")
    replay.add_argument("--max-in-flight", type=_positive, default=1024, metavar="N", help="requests under way at most (default 1024)")
    replay.add_argument("--prompt-tokens", type=_natural, default=0, metavar="N", help="cap on the prompts' tokens (default: the trace's)")
    replay.add_argument("--output-tokens", type=_natural, default=0, metavar="N", help="cap on tokens asked for (default: the trace's)")
    replay.add_argument("--quiet", action="store_true", help="no progress")
    _json(replay)


def _explain(commands: Commands) -> None:
    explain = _add(commands, "explain", "look", "Show why a request went where it went.")
    explain.add_argument("id", nargs="?", default="last", metavar="ID", help="its request-id; last is the newest request (default)")
    _control(explain)
    _json(explain)


def _probe(commands: Commands) -> None:
    probe = _add(commands, "probe", "look", "Show which pods hold how much of a prompt.")
    what = probe.add_mutually_exclusive_group(required=True)
    what.add_argument("text", nargs="?", metavar="TEXT", help="the prompt; - reads it from stdin")
    what.add_argument("--tokens", metavar="IDS", help="token ids, comma separated")
    what.add_argument("--messages", type=Path, metavar="FILE", help="JSON list of chat messages")
    probe.add_argument("--model", default="", help="model (default: the only one served)")
    _control(probe)
    _json(probe)


def _report(commands: Commands) -> None:
    report = _add(commands, "report", "report", "Write a report: one HTML page that opens offline, JSON, and Parquet tables.")
    report.add_argument("report", choices=["daily"], metavar="REPORT", help="daily: requests, latency, cache, index, findings, fleet")
    report.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for its files; made when missing")
    report.add_argument("--since", metavar="TIME", help="beginning, UTC: 2026-11-25T06:00, seconds since 1970, or 24h ago (default)")
    report.add_argument("--until", metavar="TIME", help="end, not included (default: now)")
    _control(report)
    _json(report)


def _control(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", default="", help="control API's address (default: the running stack's)")
    command.add_argument("--token", help="its bearer token (default: the state folder's, or $WORKBENCH_TOKEN)")


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return number


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 1024 <= number <= 65_500:
        raise argparse.ArgumentTypeError("must lie between 1024 and 65500")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not number > 0 or number == float("inf"):
        raise argparse.ArgumentTypeError("must be above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
