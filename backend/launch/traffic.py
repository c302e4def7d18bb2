"""The demo's gentle traffic: the packaged trace sample, slowly, round after round, so that a new user sees life at once.

`python -m backend.launch.traffic --gateway URL --pods STATE/pods.json`. Off with `workbench up --no-traffic`. Failed requests are
counted and logged once a minute; they end nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvloop

from backend.api.fleet import Pod
from backend.core import life, logs
from backend.core.supervise import Supervisor
from backend.simulate import loadgen, traces

log = logging.getLogger(__name__)

SAMPLE = "conversation-sample"
SPEED = 0.5
"""Half the trace's pace: about 1.5 requests a second."""
RATE = 2.0
OUTPUT_TOKENS = 128
MAX_IN_FLIGHT = 32
LOOK_S = 0.5
REPORT_S = 60.0


def endless(file: Path) -> Iterator[traces.TraceRequest]:
    """The trace's requests for ever; each round begins where the one before ended."""
    shift_ms = 0.0
    for _ in itertools.count():
        last_ms = shift_ms
        for request in traces.read_mooncake(file):
            last_ms = request.timestamp + shift_ms
            yield msgspec.structs.replace(request, timestamp=last_ms)
        shift_ms = last_ms + 1000.0


async def model_of(pods_file: Path) -> str:
    """The model that most ready pods serve; waits until there is one."""
    while True:
        served = served_models(pods_file)
        if served:
            return served.most_common(1)[0][0]
        await asyncio.sleep(LOOK_S)


def served_models(pods_file: Path) -> Counter[str]:
    """Ready pods by model."""
    try:
        pods = msgspec.json.decode(pods_file.read_bytes(), type=list[Pod])
    except (OSError, msgspec.MsgspecError):
        return Counter()
    return Counter(pod.model for pod in pods if pod.ready)


async def run(gateway: str, pods_file: Path, trace: Path) -> None:
    """Send until asked to stop."""
    outcomes: Counter[str] = Counter()

    async def send() -> None:
        model = await model_of(pods_file)
        log.info("gentle traffic for %s begins", model)
        options = loadgen.LoadOptions(
            url=gateway, model=model, speed=SPEED, rate=RATE, output_tokens=OUTPUT_TOKENS, max_in_flight=MAX_IN_FLIGHT, user="demo"
        )
        await loadgen.run(endless(trace), options, lambda result: outcomes.update([result.error or "ok"]))

    async def report() -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            log.info("requests since the start: %s", ", ".join(f"{name} {count}" for name, count in outcomes.most_common()) or "none")

    async with Supervisor("traffic") as tasks:
        life.on_stop(tasks.stop)
        tasks.start("send", send)
        tasks.start("report", report)
        await tasks.wait_stopped()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m backend.launch.traffic", description=__doc__)
    parser.add_argument("--gateway", required=True, help="base URL of the gateway")
    parser.add_argument("--pods", required=True, type=Path, help="the stack's pods.json")
    parser.add_argument("--trace", default=SAMPLE, help="trace file, or the name of a packaged one")
    given = parser.parse_args()
    logs.configure("traffic")
    uvloop.run(run(given.gateway, given.pods, traces.find(given.trace)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
