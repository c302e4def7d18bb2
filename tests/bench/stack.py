"""`python -m tests.bench.stack`: a whole stack of six simulated pods: seconds to ready, memory, idle CPU, seconds to stop, what is left.

No traffic, no page open. Memory as RSS summed over processes (shared pages counted in each) and as PSS (counted once). Writes
bench-results/stack.json and prints a table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from backend.launch import look
from tests.fakes.stack import SMALL_FLEET, own_stack

ROOT = Path(__file__).resolve().parents[2]
PODS = 6


def pss_mib(pid: int) -> float:
    """Proportional memory of a process; 0 when the kernel does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")) / 1024


def measure(sample_s: float) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        fleet = place / "fleet.yaml"
        fleet.write_text((SMALL_FLEET % (PODS, 1.0)).replace("num-blocks: 4096", "num-blocks: 16384"))
        with own_stack(place, "--no-traffic", fleet=fleet) as stack:
            status = look.status(stack.state, sample_s=sample_s)
            assert status is not None
            found = {
                "ready_s": stack.ready_after_s,
                "rss_mib": sum(row.rss_bytes for row in status.processes) / 2**20,
                "pss_mib": sum(pss_mib(row.pid) for row in status.processes),
                "idle_cpu_percent": sum(row.cpu_percent for row in status.processes),
                "processes": float(len(status.processes)),
            }
            found["stop_s"] = stack.stop()
            found["left_behind"] = float(len(stack.leftovers()))
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sample", type=float, default=30.0, help="seconds over which idle CPU is measured")
    options = parser.parse_args()
    rounds = [measure(options.sample) for _ in range(options.rounds)]
    targets = {"ready_s": 15.0, "rss_mib": 1.4 * 1e9 / 2**20, "idle_cpu_percent": 10.0, "stop_s": 10.0, "left_behind": 0.0}
    print(f"{'':18}{'median':>10}{'range':>20}{'target':>10}")
    for name in rounds[0]:
        values = [found[name] for found in rounds]
        target = f"{targets[name]:.0f}" if name in targets else ""
        print(f"{name:18}{statistics.median(values):10.2f}{f'{min(values):.2f}-{max(values):.2f}':>20}{target:>10}")
    results = ROOT / "bench-results"
    results.mkdir(exist_ok=True)
    (results / "stack.json").write_text(json.dumps({"pods": PODS, "rounds": rounds, "targets": targets}, indent=2))


if __name__ == "__main__":
    main()
