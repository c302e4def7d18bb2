"""The notebooks: short, parameterised, without outputs in the repository, and they run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import papermill
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
LONGEST_CELL = 10


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def cells(notebook: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == kind]


def test_outputs_are_stripped(notebook):
    for cell in cells(notebook, "code"):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_parameters_are_tagged(notebook):
    tagged = [cell for cell in cells(notebook, "code") if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1
    assert "state" in "".join(tagged[0]["source"])


def test_logic_belongs_to_the_workbench_and_not_to_cells(notebook):
    for cell in cells(notebook, "code"):
        assert len(cell["source"]) <= LONGEST_CELL


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_the_first_look_runs_against_a_running_stack(stack, tmp_path):
    done = tmp_path / "out.ipynb"
    papermill.execute_notebook(
        NOTEBOOKS[0], done, parameters={"state": str(stack.state), "limit": 8}, progress_bar=False, execution_timeout=180
    )
    shown = json.dumps(json.loads(done.read_text()), ensure_ascii=False)
    for part in ("pods ready", "8 of 8", "KV blocks held", "← chosen", "Take vllm-", "within one block"):
        assert part in shown
    assert stack.process.poll() is None, "a notebook leaves a stack that it did not start"


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_an_upgrade_under_load_and_its_way_back_fail_no_request(cluster, tmp_path):
    done = tmp_path / "out.ipynb"
    papermill.execute_notebook(NOTEBOOKS[1], done, parameters={"state": str(cluster.state)}, progress_bar=False, execution_timeout=180)
    shown = json.dumps(json.loads(done.read_text()), ensure_ascii=False)
    for part in ("default/qwen", "set-image", "Risk medium", "Every pod is as wanted.", "0.31.0", "no errors", "only a demonstration"):
        assert part in shown
    assert re.search(r"\b0 of [1-9]\d* requests failed", shown)
    assert {pod.image for pod in cluster.pods() if pod.model == "qwen3-8b"} == {"vllm/vllm-openai:v0.32.0"}, "it was undone"
