"""Tests of the ladder's runs, its measures, its tables and its flags."""

import json
import subprocess
import sys

import pytest

from experiments import sft_ladder
from experiments.study import runs
from experiments.study.base import KS, Cell
from experiments.study.design import DESIGN
from pkpo_jax.training import checks, saved_run
from tests import pages


def evaluation(entropy, *passed):
    ks = {f"eval/pass_at_{k}": p for k, p in zip(KS, passed, strict=True)}
    return {"eval/entropy": entropy, "eval/distinct_wrong": 0.5, **ks}


def test_a_ladder_reads_its_runs(tmp_path):
    started = []

    def run_all(jobs, title):
        started.append([job.workdir.relative_to(tmp_path).as_posix() for job in jobs])
        for job in jobs:
            job.workdir.mkdir(parents=True)
            after = 0.1 * (job.changes.get("k", 0) == 8)
            lines = [
                {"step": 0, **evaluation(0.4, 0.2, 0.3, 0.4, 0.5, 0.6)},
                {"step": 7, **evaluation(0.3, 0.5, 0.6, 0.7, 0.8, 0.8 + after)},
            ]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            (job.workdir / "metrics.jsonl").write_text(text)

    found = sft_ladder.compare(tmp_path, [50, 100], [0, 1], 7, run_all)
    before, after = started
    assert before == [f"depth{d}/reported/base_seed{s}" for d in (50, 100) for s in (0, 1)]
    assert len(after) == 8 and "depth100/reported/k8_lr0.0006_seed1" in after
    base = found[50]["base"][0]
    # pass@2 - pass@1 is E p (1 - p), here of groups of 16.
    assert base["group variance"] == pytest.approx(0.1 * 15 / 16)
    assert found[100]["k8"][1]["pass@16"] == pytest.approx(0.9)
    assert "| 50 | before RL | .400 ± .000 | .200 ± .000 | .600 ± .000 |" in sft_ladder.table(found)
    assert "| 100 | +0.000 (" in (gains := sft_ladder.gains(found)) and "+0.100" in gains


def test_the_threshold_is_the_best_depth():
    at = {10: [0.5, 0.7], 20: [0.7, 0.6], 40: [0.4, 0.6]}
    found = {
        depth: {m: [{"pass@16": p} for p in seeds] for m in sft_ladder.METHODS}
        for depth, seeds in at.items()
    }
    _, _, *rows = sft_ladder.thresholds(found).splitlines()
    assert len(rows) == 2 and "| 20 | 20, 10 | -0.150 (" in rows[0]


def test_every_run_is_one_that_the_trainer_accepts():
    problems = sft_ladder.problems_at(100, 60)
    config = runs._config(problems.config)
    before = saved_run.override(config, problems.base(Cell(0)))
    checks.validate(before, 1)
    # RL has all mazes and needs no demonstrations.
    assert before.task.train_problems == sft_ladder.MAZES < config.task.train_problems
    for method in sft_ladder.METHODS:
        keys = problems.run(DESIGN.methods[method], Cell(0), 6e-4, start="")
        after = saved_run.override(config, keys)
        checks.validate(after, 1)
        assert after.task.train_problems == config.task.train_problems


def test_bad_flags_get_one_line():
    messages = {
        "--workers=-1": "-1 is not a non-negative integer",
        "--seeds=one": "expected different whole numbers",
        "--seeds=0,0": "expected different whole numbers",
    }
    program = """
import runpy
import sys
from absl import app, flags
app.run = lambda main: None
runpy.run_module("experiments.sft_ladder", run_name="__main__")
for given in sys.argv[1:]:
    try:
        flags.FLAGS(["sft_ladder", given])
    except flags.Error as e:
        print(e)
"""
    command = [sys.executable, "-c", program, *messages]
    tried = subprocess.run(command, capture_output=True, text=True, check=True, cwd=pages.ROOT)
    for message, line in zip(messages.values(), tried.stdout.splitlines(), strict=True):
        assert message in line
