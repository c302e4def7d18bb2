"""How long one plan takes: `python -m tests.bench.storm` (a JSON file and a table).

The largest pass there is, without any event saved: every RoleSet with every pod is read anew.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgspec

from backend.storm import names, plan
from tests.fakes.storm import START, StormWorld, role, storm_service

ROLE_SETS = (10, 100, 1000)
TARGET_MS = {100: 10.0}
ROUNDS = 30


def measure(groups: int) -> dict[str, float]:
    """Milliseconds of the fastest, the median and the slowest of some plans: settled, and in the middle of an upgrade."""
    world = StormWorld(storm_service(role("prefill", 4), role("decode", 4), replicas=groups, surge="10%", unavailable="10%")).run()
    settled = _time(world)
    world.set_image("engine:v2")
    world.run(1.0)
    rolling = _time(world)
    return {"role_sets": groups, "pods": groups * 8, "settled_ms": settled, "rolling_ms": rolling}


def _time(world: StormWorld) -> float:
    given = [world.cluster.list(resource) for resource in (names.ROLE_SETS, names.PODS, names.CONTROLLER_REVISIONS)]
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        plan(world.service, *given, START)
        times.append(time.perf_counter() - began)
    return round(sorted(times)[ROUNDS // 2] * 1000, 2)


def main() -> int:
    results = [measure(groups) for groups in ROLE_SETS]
    for result in results:
        target = TARGET_MS.get(int(result["role_sets"]))
        sizes, times = f"{result['role_sets']:>5} RoleSets {result['pods']:>5} pods", f"settled {result['settled_ms']:>7} ms"
        print(f"{sizes}  {times}  rolling {result['rolling_ms']:>7} ms", end="")
        print(f"  (target {target} ms)" if target else "")
    folder = Path("bench-results")
    folder.mkdir(exist_ok=True)
    (folder / "storm.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    return 0 if all(max(r["settled_ms"], r["rolling_ms"]) <= TARGET_MS.get(int(r["role_sets"]), 1e9) for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
