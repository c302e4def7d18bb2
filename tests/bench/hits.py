"""`python -m tests.bench.hits`: the same requests under several policies, each on a fresh fleet: hit rate, latency, predicted against real.

`--speed` runs clients and engines that much faster: ten trace seconds and ten engine seconds in one. Writes bench-results/hits.json
and prints a table; the ceiling is what one endless cache would have hit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fakes.stack import SMALL_FLEET, environment, own_stack

ROOT = Path(__file__).resolve().parents[2]


def replay(options: argparse.Namespace, policy: str) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        fleet = place / "fleet.yaml"
        engine_speed = options.speed if options.engine_speed is None else options.engine_speed
        fleet.write_text((SMALL_FLEET % (options.pods, engine_speed)).replace("num-blocks: 4096", "num-blocks: 16384"))
        with own_stack(place, "--no-traffic", "--no-dashboard", fleet=fleet) as stack:
            words = [sys.executable, "-m", "workbench", "replay", options.trace, "--state", str(stack.state), "--json", "--quiet"]
            words += ["--speed", str(options.speed), "--limit", str(options.limit), "--policy", policy]
            if options.output_tokens:
                words += ["--output-tokens", str(options.output_tokens)]
            done = subprocess.run(words, capture_output=True, text=True, env=environment(), check=False)
            assert done.returncode == 0, done.stderr
            found: dict[str, object] = json.loads(done.stdout)
            return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trace", default="conversation-sample")
    parser.add_argument("--policies", default="random,least-request,prefix-cache")
    parser.add_argument("--pods", type=int, default=4)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--speed", type=float, default=10.0)
    parser.add_argument("--engine-speed", type=float, help="default: the clients' speed")
    parser.add_argument("--output-tokens", type=int, default=0, help="cap on tokens asked for; 0: the trace's")
    options = parser.parse_args()
    found = {policy: replay(options, policy) for policy in options.policies.split(",")}
    results = ROOT / "bench-results"
    results.mkdir(exist_ok=True)
    (results / "hits.json").write_text(json.dumps({"options": vars(options), "policies": found}, indent=2))
    for policy, summary in found.items():
        print(policy, json.dumps(summary))


if __name__ == "__main__":
    main()
