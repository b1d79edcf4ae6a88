"""Tests of sweeps: their runs, the comparison of results, and the handling of a failed run."""

import json
import math
import subprocess
import sys

import pytest

from pkpo_jax import command_line, configs, sweep
from pkpo_jax.training import metrics, policies, run_directory
from tests.test_main import SMALL

OVERRIDES = [*SMALL, "--config.train.steps=1", "--config.log.report=False"]


def test_every_k_with_every_seed(tmp_path):
    request = sweep.Request("a.py", ["--config.x=1"], [1, 8], [0, 2])
    runs = sweep.describe(tmp_path, request)
    assert [run.name for run in runs] == ["k1_seed0", "k1_seed2", "k8_seed0", "k8_seed2"]
    assert runs[3].config == "a.py"
    assert runs[3].overrides == ("--config.x=1", "--config.seed=2", "--config.k=8")
    # An override of k would replace the schedule that the argument sets.
    (run,) = sweep.describe(tmp_path, request._replace(config="a.py:anneal", ks=[4], seeds=[1]))
    assert (run.config, run.overrides) == ("a.py:anneal,k=4", ("--config.x=1", "--config.seed=1"))


def test_spread_over_seeds():
    def result(before, after):
        return sweep.Result({1: before, 2: 0.5, 4: 0.5}, {1: after, 2: 0.5})

    results = {
        (1, 0): result(0.1, 0.2),
        (1, 1): result(0.3, 0.6),
        (8, 1): result(0.3, 0.5),  # Seed 0 failed.
    }
    rows = sweep.compare(results)
    assert list(rows) == ["before RL", "k = 1", "k = 8"]
    # The results after RL have no pass@4. Before RL, the policy of seed 1 counts only once.
    assert all(list(row) == [1, 2] for row in rows.values())
    assert rows["before RL"][1] == pytest.approx((0.2, math.sqrt(0.02)))
    assert rows["k = 1"][1] == pytest.approx((0.4, math.sqrt(0.08)))
    assert rows["k = 8"][1] == (0.5, 0.0)


@pytest.mark.parametrize("modes", [True, False])
def test_modes_are_shown_where_they_differ_from_answers(tmp_path, monkeypatch, capsys, modes):
    def lines(workdir):
        k, seed = (int(part[-1]) for part in workdir.name.split("_"))
        for step in (0, 5):
            passed = {1: 0.1 * k, 2: 0.2 + 0.01 * (step + seed)}
            distinct = {1: passed[1], 2: passed[2] + 0.3 * modes}
            yield {"step": step - 1, "train/reward_mean": 0.5}
            yield {
                "step": step,
                **{f"eval/pass_at_{k}": x for k, x in passed.items()},
                **{f"eval/distinct_correct_{k}": x for k, x in distinct.items()},
                "eval/mode_coverage": 0.25,
            }

    monkeypatch.setattr(sweep, "_is_finished", lambda run: True)
    monkeypatch.setattr(sweep.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sweep.metrics, "read", lambda workdir: list(lines(workdir)))
    assert sweep.run(tmp_path, sweep.Request("a.py", [], [1, 2], [0, 2])) == 0
    shown = capsys.readouterr().out
    assert "held-out pass@k" in shown
    assert ("held-out distinct correct@k" in shown) == ("coverage" in shown) == modes
    # The mean of .25 and .27 for pass@2 after RL, with .3 more for the second mode.
    assert ".260 (.014)" in shown and (".560 (.014)" in shown) == modes


def test_interrupted_it_ends_its_runs(tmp_path, monkeypatch):
    started = []

    def start(run, request):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        started.append(process)
        return process

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "_start", start)
    monkeypatch.setattr(sweep.time, "sleep", interrupt)
    monkeypatch.setattr(sweep.signal, "signal", lambda *_: None)
    request = sweep.Request("a.py", [], [1, 2], [0, 1], jobs=3)
    with pytest.raises(KeyboardInterrupt):
        sweep._run_all(sweep.describe(tmp_path, request), request)
    assert len(started) == 3 and all(process.poll() is not None for process in started)


def test_a_run_that_fails_costs_itself_and_is_done_when_started_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sweep.signal, "signal", lambda *_: None)
    config = configs.find("maze_tiny")
    request = sweep.Request(config, OVERRIDES, ks=[1, 2], seeds=[0], jobs=2)
    # A file in the place of the second run's checkpoints makes it fail.
    (_, second) = sweep.describe(tmp_path, request)
    config = policies.resolve(command_line.read_config(config, second.overrides))
    run_directory.claim(second.workdir, config)
    (second.workdir / "checkpoints").write_text("")

    assert sweep.run(tmp_path, request) == 1
    assert "k2_seed0 failed, with exit code" in capsys.readouterr().err
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert (list(found["runs"]), list(found["failed"])) == (["k1_seed0"], ["k2_seed0"])
    recorded = (tmp_path / "k1_seed0" / "metrics.jsonl").stat().st_mtime_ns

    (second.workdir / "checkpoints").unlink()
    assert sweep.run(tmp_path, request) == 0
    assert (tmp_path / "k1_seed0" / "metrics.jsonl").stat().st_mtime_ns == recorded
    shown = capsys.readouterr().out
    assert "k1_seed0: started" not in shown and "k = 2" in shown
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert (list(found["runs"]), found["failed"]) == (["k1_seed0", "k2_seed0"], {})
    last = metrics.read(second.workdir)[-1]
    assert found["rows"]["k = 2"]["2"] == {"mean": last["eval/pass_at_2"], "std": 0.0}
    modes = found["distinct_correct"]["rows"]["k = 2"]
    assert modes["2"] == {"mean": last["eval/distinct_correct_2"], "std": 0.0}
    assert modes["coverage"] == {"mean": last["eval/mode_coverage"], "std": 0.0}
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
