"""How commands print: JSON for programs, the objects' own text for people."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def show(arguments: argparse.Namespace, data: Any, text: str) -> None:
    """`data` as indented JSON with `--json`, else `text`."""
    if arguments.json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(data), indent=2).decode() + "\n")
    else:
        sys.stdout.write(text.rstrip() + "\n")
