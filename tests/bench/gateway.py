"""What the gateway costs a request: `python -m tests.bench.gateway` (`make bench-gateway`).

One worker with everything on that is on by default: prefix-cache over a real shared index of six pods, token-id prompts of 2 KB,
decision records to a real Valkey, metrics. CPU is the scheduler's own account (/proc/PID/schedstat) of the worker's threads; the load
comes from wrk, the engines are canned. `WORKBENCH_PROTOTYPE_PROXY=FILE` runs the raw proxy of the figures in the same rounds,
alternating, so that the ratio holds on any machine. Results: a table, and `bench-results/gateway.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from backend.kvindex import PrefixIndex
from tests.fakes.valkey import Valkey, free_port

ROOT = Path(__file__).resolve().parents[2]
PODS = 6
PROMPTS = 64
TOKENS = 380
BLOCK = 16
_PROTOTYPE_SHIM = """
import msgspec
class Body(msgspec.Struct):
    model: str
    prompt: msgspec.Raw
    stream: bool = False
dec = msgspec.json.Decoder(Body)
"""


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of one process, in seconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def process(*argv: str, log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        running = subprocess.Popen(argv, stdout=output, stderr=output, cwd=options.pop("cwd", ROOT), **options)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def prompts() -> list[list[int]]:
    """Half of them share long heads, as conversations do; all about 2 KB as JSON."""
    chance = random.Random(7)
    heads = [[chance.randrange(1000, 99_999) for _ in range(TOKENS // 2)] for _ in range(8)]
    return [heads[number % 8] + [chance.randrange(1000, 99_999) for _ in range(TOKENS // 2)] for number in range(PROMPTS)]


def stored_event(tokens: list[int], first_hash: int) -> bytes:
    """One vLLM message: all blocks of a prompt's first half."""
    blocks = len(tokens) // 2 // BLOCK
    hashes = list(range(first_hash, first_hash + blocks))
    return msgspec.msgpack.encode([time.time(), [["BlockStored", hashes, None, tokens[: blocks * BLOCK], BLOCK, None]], 0])


@contextmanager
def live_index(folder: Path) -> Iterator[None]:
    """An index over six pods that all hold the heads, as the canned engines say in each answer; its writer shows signs of life."""
    index = PrefixIndex(65_536, folder)
    for pod in range(PODS):
        for number, prompt in enumerate(prompts()[:8]):
            index.ingest(f"pod-{pod}", stored_event(prompt, 1 + number * 1000), model="m")
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.5):
            index.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        index.close()


def write_lua(path: Path, stream: bool) -> None:
    bodies = [
        json.dumps({"model": "m", "prompt": prompt, "max_tokens": 64, "stream": stream}, separators=(",", ":")) for prompt in prompts()
    ]
    lines = ['wrk.method = "POST"', 'wrk.headers["Content-Type"] = "application/json"', "local bodies = {"]
    lines += [f"  {json.dumps(body)}," for body in bodies]
    lines += ["}", "local at = 0", f"request = function() at = at % {PROMPTS} + 1; return wrk.format(nil, nil, nil, bodies[at]) end"]
    path.write_text("\n".join(lines))


def wrk(port: int, script: Path, seconds: int) -> tuple[int, float, str]:
    """(requests, requests a second, what went wrong)."""
    url = f"http://127.0.0.1:{port}/v1/completions"
    told = subprocess.run(
        ["wrk", "-t1", "-c16", f"-d{seconds}s", "-s", str(script), url], capture_output=True, text=True, check=True
    ).stdout
    found, rate = re.search(r"(\d+) requests in", told), re.search(r"Requests/sec:\s+([\d.]+)", told)
    wrong = re.findall(r"(Non-2xx.*|Socket errors.*)", told)
    assert found is not None
    assert rate is not None
    return int(found[1]), float(rate[1]), "; ".join(wrong)


def wait_open(port: int, seconds: float = 30.0) -> None:
    import socket

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port} after {seconds} s")


def start_gateway(stack: ExitStack, folder: Path, ports: list[int], policy: str) -> tuple[int, int]:
    """(port, the worker's process id)."""
    shared = folder / "shared"
    shared.mkdir()
    stack.enter_context(live_index(shared))
    (folder / "valkey").mkdir()
    valkey = Valkey(folder / "valkey")
    valkey.start()
    stack.callback(valkey.kill)
    port = free_port()
    pods = "".join(f'[[pods]]\nname = "pod-{at}"\naddress = "127.0.0.1:{each}"\nmodel = "m"\n' for at, each in enumerate(ports))
    config = folder / "gateway.toml"
    config.write_text(
        f'shared = "{shared}"\n[listen]\nport = {port}\nworkers = 1\n[routing]\npolicy = "{policy}"\n'
        f'[records]\nredis_url = "{valkey.url}"\n{pods}'
    )
    env = {**os.environ, "NUMBA_CACHE_DIR": os.environ.get("NUMBA_CACHE_DIR", str(ROOT / ".venv" / "numba-cache"))}
    master = stack.enter_context(
        process(sys.executable, "-m", "backend.gateway", "--config", str(config), log=folder / "gateway.log", env=env)
    )
    wait_open(port)
    time.sleep(3)  # kernels are loaded behind the first requests
    (worker,) = children(master.pid)
    return port, worker


def start_prototype(stack: ExitStack, folder: Path, ports: list[int]) -> tuple[int, int] | None:
    """The raw proxy, on our ports: it has fixed ones and takes its decoder from a module that needs gRPC."""
    source = os.environ.get("WORKBENCH_PROTOTYPE_PROXY")
    if not source:
        return None
    port = free_port()
    text = Path(source).read_text()
    for old, new in (("9001", ports[0]), ("9002", ports[1]), ("9301", port)):
        text = text.replace(old, str(new))
    (folder / "epp.py").write_text(_PROTOTYPE_SHIM)
    (folder / "prototype.py").write_text(text)
    running = stack.enter_context(process(sys.executable, "prototype.py", log=folder / "prototype.log", cwd=folder))
    wait_open(port)
    return port, running.pid


def measure(rounds: int, seconds: int, policy: str) -> dict[str, Any]:
    results: dict[str, dict[str, list[float]]] = {}
    problems: list[str] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = [free_port() for _ in range(PODS)]
        for half in (ports[::2], ports[1::2]):
            stack.enter_context(process(sys.executable, "-m", "tests.bench.gateway_engine", *map(str, half), log=folder / "engine.log"))
        for port in ports:
            wait_open(port)
        targets = {"gateway": start_gateway(stack, folder, ports, policy)}
        prototype = start_prototype(stack, folder, ports)
        if prototype is not None:
            targets["prototype"] = prototype
        for kind in ("plain", "stream"):
            write_lua(folder / f"{kind}.lua", kind == "stream")
        for round_ in range(rounds):
            order = list(targets.items())
            for name, (port, pid) in order if round_ % 2 == 0 else reversed(order):
                for kind in ("plain", "stream"):
                    wrk(port, folder / f"{kind}.lua", 1)
                    before = cpu_seconds(pid)
                    number, rate, wrong = wrk(port, folder / f"{kind}.lua", seconds)
                    spent = cpu_seconds(pid) - before
                    row = results.setdefault(f"{name} {kind}", {"cpu_s_per_1000": [], "requests_per_s": []})
                    row["cpu_s_per_1000"].append(spent / number * 1000)
                    row["requests_per_s"].append(rate)
                    if wrong:
                        problems.append(f"{name} {kind}: {wrong}")
        if "error" in (log := (folder / "gateway.log").read_text()).lower():
            problems.append(log[-2000:])
    return {"rounds": results, "problems": problems, "policy": policy}


def report(measured: dict[str, Any]) -> str:
    rows = []
    median = {name: statistics.median(row["cpu_s_per_1000"]) for name, row in measured["rounds"].items()}
    for name, row in measured["rounds"].items():
        kind = name.split()[1]
        base = median.get(f"prototype {kind}")
        ratio = f"{median[name] / base:5.2f}" if base else "    -"
        spread = f"{min(row['cpu_s_per_1000']):.4f}-{max(row['cpu_s_per_1000']):.4f}"
        rows.append(f"{name:18} {median[name]:.4f}  {spread}  {ratio}  {statistics.median(row['requests_per_s']):8.0f}")
    title = f"{'':18} CPU-s per 1000 requests (range)   x prototype   requests/s   [policy {measured['policy']}]"
    return "\n".join([title, *rows, *measured["problems"]])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--policy", default="prefix-cache")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        print("wrk is needed (Debian: apt-get install wrk).", file=sys.stderr)
        return 1
    measured = measure(options.rounds, options.seconds, options.policy)
    print(report(measured))
    folder = ROOT / "bench-results"
    folder.mkdir(exist_ok=True)
    (folder / "gateway.json").write_text(json.dumps(measured, indent=1))
    return 1 if measured["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
