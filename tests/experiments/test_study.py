"""Tests of the study's estimators, jobs, order of work, page and flags."""

import ast
import itertools
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from experiments import toy_gaussian
from experiments.study import base, design, estimators, page, plan, report, results, runs
from experiments.study.base import Cell
from pkpo_jax.training import checks, policies, saved_run

FOLDER = pathlib.Path(design.__file__).parent


# -- estimators -----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8])
def test_disjoint_groups_are_those_of_the_toy(k):
    rewards = np.random.default_rng(k).random((5, 16)).astype(np.float32)
    everywhere = np.ones(rewards.shape, bool)
    for weigh in (estimators.disjoint_groups, jax.jit(estimators.disjoint_groups)):
        expected = toy_gaussian.naive_with_baseline(rewards, k)
        np.testing.assert_allclose(weigh(rewards, k, everywhere), expected, atol=1e-6)


def test_disjoint_groups_leave_out_prompts_that_were_not_all_graded():
    rewards = np.array([[1.0, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    where = np.array([[True] * 4, [True, True, True, False]])
    weights = np.asarray(estimators.disjoint_groups(rewards, 2, where))
    np.testing.assert_allclose(weights, [[0.5, 0.5, -0.5, -0.5], [0, 0, 0, 0]])


def test_a_k_for_each_prompt_follows_its_pass_rate():
    rewards = np.zeros((5, 16), np.float32)
    for row, correct in enumerate((0, 1, 2, 8, 16)):
        rewards[row, :correct] = 1.0
    everywhere = np.ones(rewards.shape, bool)
    weights = estimators.per_prompt_k(rewards, 1, everywhere)
    for row, k in enumerate((16, 16, 8, 2, 1)):
        weigh = toy_gaussian.ESTIMATORS["loo_minus_one"]
        np.testing.assert_allclose(weights[row], weigh(rewards[row], k), atol=1e-6)


# -- design ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", design.PROBLEMS)
def test_every_run_is_one_that_the_trainer_accepts(name):
    problems = design.PROBLEMS[name]
    config = config_of(problems.config)
    checks.validate(saved_run.override(config, problems.base(Cell(0))), 1)
    for method in design.FULL.methods[name]:
        # No policy before RL exists yet.
        keys = problems.run(design.METHODS[method], Cell(0), 1e-3, start="")
        checks.validate(saved_run.override(config, keys), 1)


def config_of(path):
    scope = {"__name__": "config"}
    exec(compile((FOLDER.parents[1] / path).read_text(), path, "exec"), scope)
    return scope["get_config"]()


def test_schedules_are_in_shares_of_the_steps():
    assert design.METHODS["explore"].changes(300)["k"] == {0: 1, 100: 8, 200: 1}


SHARED = ("base", "command", "measures", "plan", "report", "results", "runs", "script", "tables")


@pytest.mark.parametrize("name", SHARED)
def test_what_all_studies_share_reads_none_of_them(name):
    read = set()
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "experiments.study":
            read |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            read |= {node.module.removeprefix("experiments.study.")}
    assert not read & {path.stem for path in FOLDER.glob("*.py")} - set(SHARED)


# -- runs -----------------------------------------------------------------------------------------


class Program(runs.Measurement):
    """A job that runs a line of Python."""

    def command(self):
        return [sys.executable, "-c", self.arguments[0], str(self.output)]


_WRITE = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); "


def _job(path, line):
    return Program(path, "", (_WRITE + line,))


def _run_all(jobs, tmp_path, **more):
    runs.run_all(jobs, workers=2, cache=tmp_path / "cache", title="jobs", **more)


def test_what_is_complete_is_not_done_again(tmp_path):
    paths = [tmp_path / f"{i}.json" for i in range(3)]
    append = "p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    written = []
    for _ in range(2):
        _run_all([_job(path, append) for path in paths], tmp_path)
        written.append([p.with_suffix(".arguments").stat().st_mtime_ns for p in paths])
    assert [path.read_text() for path in paths] == ["x", "x", "x"]
    # Nor is the record of its arguments, which a stop halfway would spoil.
    assert written[0] == written[1]


def test_jobs_have_the_cache_and_one_core(tmp_path):
    program = (
        "import json, os, time; time.sleep(0.3); from experiments.study import runs; "
        "p.write_text(json.dumps([os.environ['JAX_COMPILATION_CACHE_DIR'], runs.count_cores()]))"
    )
    _run_all([_job(tmp_path / "found.json", program)], tmp_path)
    # Some systems cannot bind a process to a core.
    cores = 1 if hasattr(os, "sched_setaffinity") else os.cpu_count()
    assert json.loads((tmp_path / "found.json").read_text()) == [str(tmp_path / "cache"), cores]


def test_a_job_that_fails_is_named_and_the_others_are_done(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    failing = _job(bad, "print('what went wrong'); sys.exit(1)")
    with pytest.raises(runs.JobError, match=r"1 of 2 jobs failed.*bad\.log"):
        _run_all([failing, _job(good, "p.write_text('done')")], tmp_path)
    log = bad.with_suffix(".log").read_text()
    assert good.exists() and "what went wrong" in log
    # Each attempt logs its command first.
    assert log.count(shlex.join(failing.command())) == 2


def test_a_job_that_fails_once_is_tried_again(tmp_path):
    path = tmp_path / "a.json"
    line = "q = p.with_suffix('.once'); e = q.exists(); q.touch(); p.touch() if e else sys.exit(1)"
    _run_all([_job(path, line)], tmp_path)
    assert path.exists()


def test_a_directory_of_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(FOLDER.parents[1])
    changes = {"k": {0: 8, 5: 1}, "train.steps": 9, "log.report": False}
    run = runs.Run(tmp_path, "configs/maze_tiny.py", changes)
    assert not run.complete()
    config = saved_run.override(config_of("configs/maze_tiny.py"), changes)
    # A run writes the size of its policy for "auto".
    there = json.loads(json.dumps(policies.resolve(config).to_dict()))
    assert there["model"]["size"] == "tiny" and config.model.size == "auto"
    # Logging changes no result.
    there["log"].pop("report")
    (tmp_path / "config.json").write_text(json.dumps(there))
    (tmp_path / "metrics.jsonl").write_text('{"step": 8}\n')
    assert not run.complete()
    (tmp_path / "metrics.jsonl").write_text('{"step": 8}\n{"step": 9}\n')
    assert not run.complete()
    (tmp_path / "checkpoints" / "9" / "params").mkdir(parents=True)
    assert run.complete()
    for key, value in (("k", 8), ("seed", 3)):
        (tmp_path / "config.json").write_text(json.dumps({**there, key: value}))
        with pytest.raises(runs.JobError, match=rf"holds a run with {key}={value}, and this study"):
            run.complete()


def test_a_measurement_of_another_policy_is_made_again(tmp_path):
    append = "p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    for line in (append, append, append + " "):
        _run_all([_job(tmp_path / "a.json", line)], tmp_path)
    assert (tmp_path / "a.json").read_text() == "xx"


def test_an_interrupt_ends_what_was_started_and_starts_nothing(tmp_path):
    program = tmp_path / "study.py"
    program.write_text(
        """
import pathlib, signal, sys
from experiments.study import runs
from tests.experiments.test_study import _job
# A test session in the background of a shell ignores SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
here = pathlib.Path(sys.argv[1])
line = "import os, time; p.with_name(f'{p.stem}.{os.getpid()}').touch(); time.sleep(60)"
jobs = [_job(here / f"{i}.json", line) for i in range(4)]
runs.run_all(jobs, workers=2, cache=here, title="jobs")
"""
    )
    command = [sys.executable, str(program), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[1])}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    started = lambda: [p for p in tmp_path.iterdir() if p.suffix[1:].isdecimal()]  # noqa: E731
    for _ in range(600):
        if len(started()) == 2:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode and len(started()) == 2
    for path in started():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.suffix[1:]), 0)


def test_a_program_that_starts_as_the_study_stops_is_ended(tmp_path):
    stopped = threading.Event()
    stopped.set()
    job = _job(tmp_path / "a.json", "import time; time.sleep(60)")
    assert not runs._done(job, set(runs._cores()), tmp_path, set(), stopped)


# -- order of work --------------------------------------------------------------------------------


class Trainer:
    """A replacement for the trainer.

    pass@k of a run is a function of its rate, and grows with the entropy bonus. Measurements write
    their arguments.
    """

    def __init__(self, of_rate):
        self.of_rate, self.done = of_rate, []

    def __call__(self, jobs, title):
        for job in jobs:
            if job.log in self.done:
                continue
            self.done.append(job.log)
            if isinstance(job, runs.Measurement):
                job.output.parent.mkdir(parents=True, exist_ok=True)
                job.output.write_text(json.dumps(_measured(job.arguments)))
                problem = {"prompt": "", "pass_at_1": 0.5}
                job.output.with_name("problems.jsonl").write_text(json.dumps(problem) + "\n")
                continue
            job.workdir.mkdir(parents=True)
            value = self.of_rate(job.changes.get("train.learning_rate", 0.0))
            value += job.changes.get("loss.entropy_coef", 0.0)
            found = {"entropy": 0.5, "distinct_wrong": 0.5, "cumulative_solve_rate": 0.5}
            found |= {"dead_groups": 0.5, "equal_groups": 0.5}
            found |= {f"pass_at_{k}": value for k in base.KS}
            line = {f"{when}/{name}": v for when in ("eval", "train") for name, v in found.items()}
            line |= {f"time/{part}_s": 0.1 for part in ("sample", "grade", "update")}
            lines = [{"step": at, **line} for at in sorted({0, job.steps // 2, job.steps})]
            text = "".join(json.dumps(one) + "\n" for one in lines)
            (job.workdir / "metrics.jsonl").write_text(text)


def _measured(arguments):
    row = {"k": 4, "noise": 1.0, "signal": 1.0, "signal_error": 0.1, "log_ratio": 0.0}
    return {"arguments": arguments, "estimators": {"loo_minus_one": {**row, "cosine": 1.0}}}


def _sweep(tmp_path, of_rate):
    trainer = Trainer(of_rate)
    return plan.Sweep(tmp_path, design.DESIGN, design.PROBLEMS["fog"], trainer), trainer


def test_a_best_rate_inside_the_grid_is_taken(tmp_path):
    sweep, trainer = _sweep(tmp_path, lambda rate: -abs(rate - 6e-4))
    grid = sweep.tune(["k1"])["k1"]
    assert sorted(grid) == list(design.DESIGN.rates) and sweep.choose(grid) == 6e-4
    assert all("tuning" in str(path) for path in trainer.done)


@pytest.mark.parametrize(("sign", "added"), [(1, 2.4e-3), (-1, 1.5e-4)])
def test_the_grid_grows_where_the_best_rate_is_at_its_end(tmp_path, sign, added):
    sweep, _ = _sweep(tmp_path, lambda rate: sign * rate)
    grid = sweep.tune(["k1"])["k1"]
    assert sorted(grid) == sorted([*design.DESIGN.rates, added]) and sweep.choose(grid) == added


def test_tuning_and_report_share_neither_seeds_nor_problems(tmp_path):
    sweep, _ = _sweep(tmp_path, lambda rate: rate)
    tuning = [*itertools.chain(*sweep.tune(["k1"])["k1"].values())]
    reported = sweep.report({"k1": 6e-4}, design.FULL.cells(design.SEEDS))["k1"]
    for key in ("seed", "task.seed"):
        seen = [{run.changes[key] for run in group} for group in (tuning, reported)]
        assert not seen[0] & seen[1]


def test_a_study_is_tuned_then_reported_then_measured(tmp_path):
    methods = ("k1", "k4", "centered", "entropy_.01", "entropy_.05")
    rates, longer = {"fog": {6e-4: ("k1", "k4")}}, {"fog": (1000, ("k1",))}
    scope = base.Scope({"fog": methods}, (0, 1), rates, longer)
    trainer = Trainer(lambda rate: -abs(rate - 1.2e-3))
    found = plan.run(page.STUDY, tmp_path, scope, ["fog"], (0, 1), trainer)
    fog = found["problems"]["fog"]
    # Tuning keeps the scores of both bonuses, and only the better one is reported.
    assert list(fog["methods"]["entropy_.01"]) == ["grid"]
    kept = [m for m in methods if m != "entropy_.01"]
    for method in kept:
        assert fog["methods"][method]["rate"] == 1.2e-3
        assert list(fog["methods"][method]["eval"])[-1] == "200"
        assert len(fog["methods"][method]["eval"]["200"]["pass_at_1"]) == 2
    # The methods that the scope names are also run at another rate, and for longer.
    assert list(fog["at_rates"]["0.0006"]["methods"]) == ["k1", "k4"]
    assert list(fog["longer"]["methods"]["k1"]["eval"]) == ["500", "1000"]
    before, after = (found["variance"][policy] for policy in design.POLICIES)
    expected = {"k": 4, "noise": [1.0, 1.0], "signal": [1.0, 1.0], "signal_error": [0.1, 0.1]}
    assert before == after == {"loo_minus_one": {**expected, "log_ratio": [0.0, 0.0]}}
    for seed in (0, 1):
        policy = tmp_path / "fog" / "reported" / f"k4_lr0.0012_seed{seed}"
        output = tmp_path / "measured" / f"variance_{policy.name}_step200.json"
        arguments = json.loads(output.read_text())["arguments"]
        assert arguments[:2] == [f"--workdir={policy}", "--step=200"]
    assert trainer.done[-1] == tmp_path / "measured" / "cost.log"
    # A second study does no job, and has the same results.
    done = len(trainer.done)
    assert plan.run(page.STUDY, tmp_path, scope, ["fog"], (0, 1), trainer) == found
    assert len(trainer.done) == done


def test_the_quick_form_makes_a_page_of_claims_a_and_b(tmp_path):
    found = plan.run(
        page.STUDY, tmp_path, design.QUICK, ["fog"], (0, 1), Trainer(lambda rate: rate)
    )
    found["machine"] = "here"
    made = report.blocks(page.STUDY, found, [])
    assert list(made) == ["summary", "set-up", "claim a", "claim b"]
    assert "(Only a part of the study was run.)" in made["claim b"]
    # The page is made from the file, which holds the same results.
    report.write(page.STUDY, found, tmp_path)
    assert all(text in (tmp_path / "RESULTS.md").read_text() for text in made.values())
    written = report.all_tables(page.STUDY, results.load(tmp_path / "results.json"))
    assert written == report.all_tables(page.STUDY, found) == (tmp_path / "TABLES.md").read_text()


@pytest.mark.parametrize(
    ("methods", "letters", "variance"),
    [
        (["k1", "k4"], "i", True),
        (["k1", "k8"], "i", False),
        # The bonuses alone are left out.
        ([m for m in design.METHODS if m not in design.BONUSES], "abdi", True),
    ],
)
def test_a_part_of_the_methods_has_a_page_of_its_claims(
    tmp_path, monkeypatch, methods, letters, variance
):
    # The exact optimum and the cost have fixed forms, which the trainer here does not know.
    monkeypatch.setattr(page.claim_tables, "optimum", lambda found: "")
    monkeypatch.setattr(page.claim_tables, "cost", lambda found: "")
    scope = design.FULL.only(methods)
    trainer = Trainer(lambda rate: rate)
    found = plan.run(page.STUDY, tmp_path, scope, list(scope.methods), (0, 1), trainer)
    assert ("variance" in found) == variance
    found["machine"] = "here"
    kind = {"seconds": 1.0, "interval": [1.0, 1.0]}
    variants = {"k = 1": {"step": kind, "update": kind, "weights": kind}}
    found["cost"] = {"variants": variants, "compilations": 0}
    report.write(page.STUDY, found, tmp_path)
    made = report.blocks(page.STUDY, found, [])
    assert list(made) == ["summary", "set-up", *(f"claim {letter}" for letter in letters)]


# -- the page -------------------------------------------------------------------------------------


def test_paragraphs_that_people_wrote_stay():
    made = report.update("# Title\n", {"claim a": "one", "claim b": "two"})
    written = made.replace("<!-- claim b:", "By hand: \\1.\n\n<!-- claim b:")
    again = report.update(written, {"claim a": "new \\2", "claim b": "two"})
    assert again == written.replace("one", "new \\2")


def test_bad_flags_answer_at_once():
    messages = {
        "--problems=chess": "expected some of fog, plain",
        "--seeds=0,0": "expected different whole numbers",
        "--seeds=1,100": "none of those that rates are tuned on (100, 101)",
        "--problems=fog --methods=typo": "--methods=typo; expected some of k1, k2",
        "--problems=hard --methods=k16": "fog, plain, arithmetic, which have one of --methods",
        "--quick --methods=grpo,maxrl": "--methods=grpo,maxrl; --quick runs only k1, k2",
        "--quick --page=here": "would drop the rest from that page",
    }
    # One process tries all of them, and no flag of the command is left in that of the tests.
    program = """
import sys
from absl import app, flags
from absl.testing import flagsaver
from experiments.study import command
for given in sys.argv[1:]:
    with flagsaver.flagsaver():
        try:
            flags.FLAGS(["study", *given.split()])
            command.main("experiments.study", ["study"])
        except app.UsageError as e:
            print(e)
"""
    command = [sys.executable, "-c", program, *messages]
    root = FOLDER.parents[1]
    tried = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    said = tried.stdout.splitlines()
    for message, line in zip(messages.values(), said, strict=True):
        assert message in line


@pytest.mark.parametrize("text", ["", "[]", '{"problems": {}}'])
def test_results_of_another_format_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    wrong = _say(f"--render={tmp_path}")
    assert wrong.returncode and "stopped: " in wrong.stderr
    assert f"{tmp_path / 'results.json'} " in wrong.stderr
    assert not (tmp_path / "RESULTS.md").exists()


def test_help_shows_the_flags():
    assert "--[no]quick" in _say("--helpshort").stdout


def _say(*flags):
    command = [sys.executable, "-m", "experiments.study", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parents[1])
