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


def commands() -> list[tuple[str, str]]:
    lines = [(name, line[2:].strip()) for name, text in blocks("console") for line in text.splitlines() if line.startswith("$ ")]
    return [(name, line) for name, line in lines if line not in ELSEWHERE]


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
@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda value: value[:60])
def test_a_command_runs(page: str, line: str, environment: dict[str, str]) -> None:
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here(line, environment)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, f"{page}: {line}\n{ran.stdout}\n{ran.stderr}"
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
