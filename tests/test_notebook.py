"""The quickstart notebook runs, and is committed with the outputs of its own code."""

import json

import pytest

pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")
pytest.importorskip("ipykernel", reason="needs nbclient and ipykernel")

from tests import notebook

SHORTER = "warm_start_steps, rl_steps, training_mazes, held_out_mazes = 2, 2, 200, 64"


def outputs(cells):
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def test_every_cell_runs():
    cells = notebook.execute(SHORTER).cells
    text = "".join(output["text"] for output in outputs(cells) if output.get("name") == "stdout")
    assert "k = 8: 2 steps" in text and "trained for pass@8" in text
    images = [output for output in outputs(cells) if "image/png" in output.get("data", {})]
    assert len(images) == 1


def test_the_committed_notebook_is_executed_and_small():
    assert notebook.PATH.stat().st_size < 150_000
    cells = json.loads(notebook.PATH.read_text(encoding="utf-8"))["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for o in outputs(cells) if o.get("name") == "stderr"]
    assert not [o for o in outputs(cells) if o["output_type"] == "error"]
    assert len([o for o in outputs(cells) if "image/png" in o.get("data", {})]) == 1
