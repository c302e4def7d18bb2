"""`python -m backend.kvindex --config kvindex.toml`: the index service as a process."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import uvloop

from backend.core import config, life, logs
from backend.core.errors import UsageError, WorkbenchError
from backend.core.settings import KvIndexSettings
from backend.core.supervise import Supervisor
from backend.kvindex.service import IndexService


async def _run(settings: KvIndexSettings) -> None:
    async with Supervisor("kvindex") as tasks:
        life.on_stop(tasks.stop)
        await IndexService(settings, tasks).run()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m backend.kvindex", description="Follows KV events and keeps the prefix index.")
    parser.add_argument("--config", type=Path, help="TOML file; see backend.core.settings.KvIndexSettings")
    options = parser.parse_args()
    logs.configure("kvindex")
    try:
        uvloop.run(_run(config.load(KvIndexSettings, options.config, env=os.environ, section="KVINDEX")))
    except WorkbenchError as error:
        print(f"kvindex: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
