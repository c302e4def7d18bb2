"""The house stands as drawn: top level, layers, one list of dependencies with a reason each, small modules."""

from __future__ import annotations

import ast
import gc
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = [path for folder in ("backend", "workbench", "apps") for path in sorted((ROOT / folder).rglob("*.py"))]
TOP_LEVEL = {
    "pyproject.toml", "environment.yml", "Makefile", "README.md", "LICENSE", "docs",
    "backend", "workbench", "apps", "notebooks", "tests",
}  # fmt: skip


def parse(path: Path) -> ast.Module:
    """CPython 3.11 loses count of its recursion when a collection runs inside `ast.parse` (python/cpython#106905)."""
    gc.disable()
    try:
        return ast.parse(path.read_text())
    finally:
        gc.enable()


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def test_nothing_else_stands_at_the_top() -> None:
    top = {name.split("/")[0] for name in tracked() if not name.startswith(".")}
    assert top <= TOP_LEVEL


def test_layers_hold() -> None:
    told = subprocess.run([f"{sys.prefix}/bin/lint-imports", "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_both_lists_of_dependencies_agree() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(item["pip"] for item in conda["dependencies"] if isinstance(item, dict))
    assert listed == PROJECT["project"]["dependencies"]
    assert f"python{PROJECT['project']['requires-python']}" in conda["dependencies"]


def test_every_dependency_carries_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    requirement = re.compile(r'^  "[A-Za-z0-9_.-]+.*",')
    silent = [line for line in lines if requirement.match(line) and "#" not in line and "backend." not in line and ".*" not in line]
    names = re.compile(r'^  "(apps|workbench|backend[a-z. |]*)",$|^  "[A-Z]+\d*"')
    assert [line for line in silent if not names.match(line) and not re.match(r'^  "(ui|e2e|chaos|real_engine|error|ignore)', line)] == []


@pytest.mark.parametrize("extra", ["test", "lint", "bench", "real-engine"])
def test_extras_exist(extra: str) -> None:
    assert PROJECT["project"]["optional-dependencies"][extra]


def test_modules_and_functions_stay_small_enough_to_read() -> None:
    big = []
    for path in SOURCES:
        text = path.read_text()
        if (lines := len(text.splitlines())) > 400:
            big.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > 60:
                    big.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {size} lines")
    assert big == []


def test_every_module_says_what_it_owns() -> None:
    silent = [str(path.relative_to(ROOT)) for path in SOURCES if path.read_text().strip() and not ast.get_docstring(parse(path))]
    assert silent == []
