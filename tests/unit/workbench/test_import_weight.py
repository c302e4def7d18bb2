"""What importing the workbench costs: modules are counted, not seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("panel", "bokeh", "holoviews", "numba", "polars", "pandas", "numpy", "httpx", "aiohttp", "jinja2", "tqdm", "uvloop", "zmq")

STARTS = [
    ("import", "import workbench", set()),
    ("help", "import workbench.__main__ as main; main.parser().format_help()", set()),
    ("connect", "import workbench.sync", {"httpx"}),
    ("replay", "import workbench.traffic, backend.launch.replay", set()),
]


@pytest.mark.parametrize(("code", "allowed"), [start[1:] for start in STARTS], ids=[start[0] for start in STARTS])
def test_nothing_heavy_is_loaded_before_it_is_used(code, allowed):
    program = f"{code}\nimport sys, json; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60).stdout
    assert set(json.loads(loaded)) <= allowed
