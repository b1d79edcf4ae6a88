"""Tests that the Python code of the README runs unchanged."""

import pathlib
import re
import subprocess
import sys

from pkpo_jax.training import metrics

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run(*arguments, **options):
    result = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result


def test_python_blocks_run():
    assert len(BLOCKS) == 2
    for block in BLOCKS:
        run("-c", block)


def test_a_task_of_ones_own_trains(tmp_path):
    (block,) = [block for block in BLOCKS if "class Backwards(Task)" in block]
    (tmp_path / "backwards.py").write_text(block)
    (command,) = re.findall(r"python -m (pkpo_jax.main --config=backwards.py .*)", README)
    shorter = ["warm_start.steps=2", "train.steps=2", "eval.problems=32", "grading.workers=1"]
    shorter += ["log.report=False", "eval.n=16"]
    run("-m", *command.split(), *(f"--config.{key}" for key in shorter), cwd=tmp_path)
    last = metrics.read(tmp_path / "runs" / "backwards")[-1]
    assert last["step"] == 2 and "eval/pass_at_16" in last
    graded = [last[f"grade/{status}"] for status in ("ok", "wrong_format", "timeout", "error")]
    assert sum(graded) == 16 * 16 and graded[2:] == [0, 0]
