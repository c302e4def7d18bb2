"""Every command and snippet of the README and the guides runs. One stack serves them all; `make test` is the run you are in."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.stack import running_stack

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)

# Commands that cannot run inside a test run, and what proves them instead.
ELSEWHERE = {
    "make up": "starts a stack of its own below",
    "make test": "this very run",
    "make test-real": "needs a real engine",
    "make chaos": "its seeded tenth is part of this run",
    "make bench": "its programs are imported by tests/unit",
    ". .venv/bin/activate": "the environment is active here",
}


def blocks(kind: str) -> list[tuple[str, str]]:
    return [(page.name, text) for page in PAGES for found, text in BLOCK.findall(page.read_text()) if found == kind]


def commands(text: str) -> list[str]:
    """The lines behind `$ `, with continued lines joined; without those that are proven elsewhere."""
    joined = text.replace("\\\n", " ")
    lines = [" ".join(line[2:].split("  #")[0].split()) for line in joined.splitlines() if line.startswith("$ ")]
    return [line for line in lines if line not in ELSEWHERE]


def script(lines: list[str]) -> str:
    """One terminal: a server goes to the background until its port answers, and ends with the script."""
    parts = ["set -euo pipefail", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for line in lines:
        port = re.search(r"--port (\d+)", line)
        if line.startswith("python -m backend.") and port:
            parts += [f"{line} &", f"for i in $(seq 100); do (: < /dev/tcp/127.0.0.1/{port[1]}) 2>/dev/null && break; sleep 0.1; done"]
        else:
            parts.append(line)
    return "\n".join(parts)


TERMINALS = [(name, commands(text)) for name, text in blocks("console") if commands(text)]


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The reader's terminal: the virtual environment is active and a stack runs."""
    endpoints = running_stack()
    env = {**os.environ, "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "WORKBENCH_STATE": endpoints.state}
    env["README_GATEWAY"] = endpoints.gateway
    env["README_CONTROL"] = endpoints.control
    return env


def here(text: str, environment: dict[str, str]) -> str:
    """The same words with this stack's ports and folder."""
    text = text.replace("http://127.0.0.1:18802", environment["README_GATEWAY"]).replace(
        "http://127.0.0.1:18801", environment["README_CONTROL"]
    )
    return text.replace(".workbench/", environment["WORKBENCH_STATE"] + "/")


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("page", "lines"), TERMINALS, ids=[f"{name}-{lines[0][:40]}" for name, lines in TERMINALS])
def test_a_terminal_session_runs(page: str, lines: list[str], environment: dict[str, str]) -> None:
    text = here(script(lines), environment)
    ran = subprocess.run(["bash", "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert ran.returncode == 0, f"{page}: {lines}\n{ran.stdout}\n{ran.stderr}"
    assert "Traceback" not in ran.stderr


@pytest.mark.e2e
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("page", "code"), blocks("python"), ids=lambda value: value[:40])
def test_a_snippet_runs(page: str, code: str, environment: dict[str, str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", here(code, environment)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, f"{page}\n{ran.stderr}"


@pytest.mark.parametrize(
    "target", ["up", "test", "check", "bench", "bench-index", "bench-gateway", "bench-ui", "chaos", "test-real", "clean"]
)
def test_a_make_target_exists(target: str) -> None:
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_every_link_to_a_file_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
