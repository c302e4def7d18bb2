"""`python -m backend.gateway --config gateway.toml`: the master process."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import uvloop

from backend.core import config, logs
from backend.core.errors import UsageError, WorkbenchError
from backend.core.settings import GatewaySettings
from backend.gateway.master import Master


async def _run(settings: GatewaySettings) -> None:
    await Master(settings).run()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m backend.gateway", description="Routes OpenAI requests to the pods that hold their prefix."
    )
    parser.add_argument("--config", type=Path, help="TOML file; see backend.core.settings.GatewaySettings")
    options = parser.parse_args()
    logs.configure("gateway")
    try:
        settings = config.load(GatewaySettings, options.config, env=os.environ, section="GATEWAY")
        uvloop.run(_run(settings))
    except WorkbenchError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
