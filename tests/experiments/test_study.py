"""The study: its estimators, its order of work, and how it reads results."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import toy_gaussian
from experiments.study import (
    claims,
    claims_of_k,
    design,
    estimators,
    finding,
    page,
    plan,
    report,
    results,
    runs,
    tables,
)
from pkpo_jax.training import checks, stored

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
    config = _config(problems.config)
    checks.validate(stored.override(config, problems.base(0)), 1)
    for method in design.FULL.methods[name]:
        # The policy before RL is not there yet.
        keys = problems.run(design.METHODS[method], 0, 1e-3, start="")
        checks.validate(stored.override(config, keys), 1)


def _config(path):
    scope = {"__name__": "config"}
    exec(compile((FOLDER.parents[1] / path).read_text(), path, "exec"), scope)
    return scope["get_config"]()


def test_schedules_are_in_shares_of_the_steps():
    assert design.METHODS["explore"].changes(300)["k"] == {0: 1, 100: 8, 200: 1}


# -- runs -----------------------------------------------------------------------------------------


class Program(runs.Measurement):
    """A job that is a line of Python."""

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
    for _ in range(2):
        _run_all([_job(path, append) for path in paths], tmp_path)
    assert [path.read_text() for path in paths] == ["x", "x", "x"]


def test_jobs_have_the_cache_and_one_core(tmp_path):
    program = (
        "import json, os, time; time.sleep(0.3); from experiments.study import runs; "
        "p.write_text(json.dumps([os.environ['JAX_COMPILATION_CACHE_DIR'], runs.count_cores()]))"
    )
    _run_all([_job(tmp_path / "found.json", program)], tmp_path)
    # Where a process can be given a core.
    cores = 1 if hasattr(os, "sched_setaffinity") else os.cpu_count()
    assert json.loads((tmp_path / "found.json").read_text()) == [str(tmp_path / "cache"), cores]


def test_a_job_that_fails_is_named_and_the_others_are_done(tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    failing = _job(bad, "print('what went wrong'); sys.exit(1)")
    with pytest.raises(runs.JobError, match=r"1 of 2 jobs failed.*bad\.log"):
        _run_all([failing, _job(good, "p.write_text('done')")], tmp_path)
    assert good.exists() and "what went wrong" in bad.with_suffix(".log").read_text()


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
    config = stored.override(_config("configs/maze_tiny.py"), changes).to_dict()
    there = json.loads(json.dumps(config))
    # What is logged changes no result.
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
# A test session in the background of a shell has it ignored.
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


# -- order of work --------------------------------------------------------------------------------


class Trainer:
    """Stands in for the trainer: pass@k of a run is a function of its rate."""

    def __init__(self, of_rate):
        self.of_rate, self.done = of_rate, []

    def __call__(self, jobs, title):
        for job in jobs:
            if isinstance(job, runs.Run) and job.workdir not in self.done:
                self.done.append(job.workdir)
                job.workdir.mkdir(parents=True)
                value = self.of_rate(job.changes.get("train.learning_rate", 0.0))
                line = {"step": job.steps, "eval/entropy": 0.5}
                line |= {f"eval/pass_at_{k}": value for k in design.KS}
                (job.workdir / "metrics.jsonl").write_text(json.dumps(line) + "\n")


def _sweep(tmp_path, of_rate):
    trainer = Trainer(of_rate)
    return plan.Sweep(tmp_path, design.PROBLEMS["fog"], trainer), trainer


def test_a_best_rate_inside_the_grid_is_taken(tmp_path):
    sweep, trainer = _sweep(tmp_path, lambda rate: -abs(rate - 6e-4))
    grid = sweep.tune(["k1"])["k1"]
    assert sorted(grid) == list(design.RATES) and sweep.choose(grid) == 6e-4
    assert all("tuning" in str(path) for path in trainer.done)


@pytest.mark.parametrize(("sign", "added"), [(1, 2.4e-3), (-1, 1.5e-4)])
def test_the_grid_grows_where_the_best_rate_is_at_its_end(tmp_path, sign, added):
    sweep, _ = _sweep(tmp_path, lambda rate: sign * rate)
    grid = sweep.tune(["k1"])["k1"]
    assert sorted(grid) == sorted([*design.RATES, added]) and sweep.choose(grid) == added


def test_tuning_and_report_share_neither_seeds_nor_problems(tmp_path):
    sweep, _ = _sweep(tmp_path, lambda rate: rate)
    tuning = [*itertools.chain(*sweep.tune(["k1"])["k1"].values())]
    reported = sweep.report({"k1": 6e-4}, design.SEEDS)["k1"]
    for key in ("seed", "task.seed"):
        seen = [{run.changes[key] for run in group} for group in (tuning, reported)]
        assert not seen[0] & seen[1]


# -- what is read from results --------------------------------------------------------------------


def _run(at, seed, jitter=0.0, steps=200):
    last = {f"pass_at_{k}": v + jitter for k, v in zip(design.KS, at, strict=True)}
    last |= {"entropy": at[-1], "distinct_wrong": at[-1], "majority": at[0]}
    train = {"step": [steps // 4 * i for i in (1, 2, 3, 4)]}
    train |= {name: [v] * 4 for name, v in last.items()}
    # What is solved grows by as much as pass@16 is high.
    train["cumulative_solve_rate"] = [at[-1] * i / 4 + jitter for i in (1, 2, 3, 4)]
    first = {name: value / 2 for name, value in last.items()}
    return {"seed": seed, "eval": {"0": first, str(steps): last}, "train": train, "step_s": 0.1}


def _set(finals, seeds=5, noise=0.0):
    """Results of methods with these final pass@k, all seeds the same but for `noise`."""
    rng = np.random.default_rng(0)
    methods = {
        m: {
            "rate": 6e-4,
            "grid": {},
            "runs": [_run(at, seed, noise * rng.standard_normal()) for seed in range(seeds)],
        }
        for m, at in finals.items()
    }
    rates = dict.fromkeys(("5%", "25%", "50%", "75%", "95%", "mean", "solved"), 0.1)
    return {"methods": methods, "pass_rates": rates, "one_rate": {"rate": 6e-4, "methods": methods}}


_DIAGONAL = {
    "k1": (0.60, 0.62, 0.64, 0.66, 0.68),
    "k2": (0.59, 0.68, 0.74, 0.78, 0.80),
    "k4": (0.58, 0.66, 0.78, 0.84, 0.86),
    "k8": (0.56, 0.62, 0.76, 0.88, 0.92),
    "k16": (0.40, 0.54, 0.70, 0.86, 0.94),
}


def _results(finals, seeds=5, **more):
    found = {"problems": {"fog": _set(finals, seeds, **more)}, "tuned": False}
    return {**found, "machine": "here", "seeds": list(range(seeds))}


def _verdicts(found):
    return {finding.letter: finding.verdict for finding in claims.findings(found)}


def test_the_diagonal_is_seen_where_it_is_and_only_there():
    assert _verdicts(_results(_DIAGONAL, noise=1e-3)) == dict.fromkeys("ab", finding.REPRODUCED)
    worst_first = list(_DIAGONAL.values())[::-1]
    reversed_ = dict(zip(_DIAGONAL, worst_first, strict=True))
    assert _verdicts(_results(reversed_)) == dict.fromkeys("ab", finding.NOT)


def test_a_pass_at_1_that_falls_far_is_not_a_little():
    steep = {**_DIAGONAL, "k8": (0.5, *_DIAGONAL["k8"][1:])}
    assert _verdicts(_results(steep))["a"] == finding.PARTLY


def test_noise_between_seeds_is_no_evidence():
    loud = claims_of_k.diagonal(_results(_DIAGONAL, noise=0.3))
    assert "higher than k_opt = 1 at 0 of k_eval" in loud.reasons


def test_one_seed_is_no_evidence_either_way():
    assert set(_verdicts(_results(_DIAGONAL, seeds=1)).values()) == {finding.UNTESTED}


_METHODS = {
    **_DIAGONAL,
    "anneal_third": (0.60, 0.66, 0.70, 0.74, 0.78),
    "anneal_two_thirds": (0.56, 0.66, 0.72, 0.76, 0.80),
    "explore": (0.62, 0.64, 0.70, 0.90, 0.92),
    "per_prompt": (0.60, 0.69, 0.79, 0.89, 0.95),
    **{m: (0.58, 0.66, 0.76, 0.83, 0.85) for m in ("centered", "loo", "none", "disjoint")},
    "b_full": (0.55, 0.64, 0.70, 0.78, 0.80),
    "b_bootstrap": (0.55, 0.64, 0.72, 0.78, 0.80),
    "b_analytical": (0.55, 0.64, 0.74, 0.78, 0.80),
    "b_combination": (0.58, 0.66, 0.75, 0.78, 0.80),
    "b_adaptive": (0.56, 0.66, 0.75, 0.78, 0.80),
    "grpo": (0.60, 0.62, 0.64, 0.66, 0.68),
    "maxrl": (0.60, 0.62, 0.64, 0.66, 0.68),
    "entropy_.05": (0.60, 0.62, 0.65, 0.67, 0.70),
}


def _everything():
    found = _results(_METHODS, noise=1e-3)
    fog = found["problems"]["fog"]
    losing = {"rate": None, "grid": {}, "runs": []}
    fog["methods"] = {"entropy_.01": losing, **fog["methods"]}
    grid = {f"{r:g}": {"score": 0.7, **_run([0.7] * 5, 0)["eval"]["200"]} for r in design.RATES}
    for method in fog["methods"].values():
        method["grid"] = grid
    fog["longer"] = {"steps": 1000, "methods": {m: fog["methods"][m] for m in ("k1", "k8")}}
    hard = {m: _DIAGONAL[m] for m in ("k1", "k4", "k8")} | {"k4": (0.70, 0.7, 0.8, 0.9, 0.9)}
    hard["k8"] = (0.65, 0.7, 0.8, 0.9, 0.95)
    found["problems"]["hard"] = {**_set(hard), "longer": {"steps": 1500, **_set(hard)}}
    names = ["none", "loo", "centered", "disjoint groups", "loo_minus_one"]
    row = {"k": 4, "noise": 2.0, "noise_to_signal": None, "log_ratio": 0.7, "log_ratio_error": 0.1}
    rows = {name: dict(row) for name in names}
    rows["loo_minus_one"] |= {"log_ratio": 0.0, "log_ratio_error": 0.0}
    rows["rloo"] = {**row, "k": 1, "log_ratio": -1.0}
    found["variance"] = {"before RL": {"k": 4, "estimators": rows}}
    kind = {"seconds": 0.1, "ratio": 1.0, "interval": [0.99, 1.01]}
    variant = {"step": kind, "update": kind, "weights": {**kind, "seconds": 1e-5}}
    variants = {name: variant for name in ("k = 1", "k = 2", "RLOO")}
    found["cost"] = {"variants": variants, "compilations": 0}
    matrix = {str(k): {str(j): 0.9 for j in design.KS} for k in design.KS}
    found["optimum"] = {"fog": {"matrix": matrix, "mixed": matrix["1"]}}
    return {**found, "tuned": True}


def test_every_claim_can_be_reproduced():
    assert _verdicts(_everything()) == dict.fromkeys("abcdefghi", finding.REPRODUCED)


@pytest.mark.parametrize(
    ("letter", "method", "at", "outcome"),
    [
        ("c", "anneal_third", (0.50, 0.66, 0.70, 0.74, 0.78), finding.PARTLY),
        ("e", "centered", (0.58, 0.66, 0.79, 0.83, 0.85), finding.PARTLY),
        ("f", "b_full", (0.55, 0.64, 0.73, 0.78, 0.80), finding.PARTLY),
        ("f", "entropy_.05", (0.60, 0.62, 0.80, 0.67, 0.70), finding.PARTLY),
        ("g", "explore", (0.59, 0.64, 0.70, 0.90, 0.92), finding.PARTLY),
        ("g", "explore", (0.59, 0.64, 0.70, 0.80, 0.92), finding.NOT),
        ("h", "per_prompt", (0.59, 0.70, 0.79, 0.89, 0.95), finding.PARTLY),
        ("h", "per_prompt", (0.10, 0.10, 0.10, 0.10, 0.10), finding.NOT),
    ],
)
def test_a_method_that_is_too_good_or_too_bad_tells(letter, method, at, outcome):
    found = _everything()
    runs_ = [_run(at, seed) for seed in range(5)]
    found["problems"]["fog"]["methods"][method]["runs"] = runs_
    assert _verdicts(found)[letter] == outcome


def test_a_hard_set_where_plain_rl_goes_on_is_not_the_claims():
    found = _everything()
    for run in found["problems"]["hard"]["methods"]["k1"]["runs"]:
        run["train"]["cumulative_solve_rate"] = [0.0, 0.0, 0.0, 1.0]
    assert _verdicts(found)["d"] == finding.PARTLY


def test_variance_and_cost_within_their_errors_are_no_evidence():
    found = _everything()
    found["variance"]["before RL"]["estimators"]["centered"]["log_ratio_error"] = 0.4
    found["cost"]["variants"]["k = 2"] = {
        **found["cost"]["variants"]["k = 2"],
        "update": {"seconds": 0.1, "ratio": 1.0, "interval": [0.7, 1.4]},
    }
    assert _verdicts(found)["e"] == _verdicts(found)["i"] == finding.PARTLY


def test_the_page_shows_every_claim_with_its_figure(tmp_path):
    report.write(_everything(), tmp_path)
    written = (tmp_path / "RESULTS.md").read_text()
    figures = [path.name for path in (tmp_path / "figures").iterdir()]
    assert {name[0] for name in figures} == set("abcdefi")
    assert all(f"(figures/{name})" in written for name in figures)
    assert all(f"<!-- claim {letter}:" in written for letter in "abcdefghi")
    # Again with less: what is not in the results does not stay on the page.
    kept = _everything()
    del kept["problems"]["hard"]
    report.write(kept, tmp_path)
    again = (tmp_path / "RESULTS.md").read_text()
    assert "d_hard" not in again and not (tmp_path / "figures" / "d_hard.png").exists()
    assert json.loads((tmp_path / "results.json").read_text()) == kept


def test_paired_differences_leave_out_what_seeds_share():
    seeds = np.array([0.1, 0.4, 0.2, 0.5, 0.3])
    e = results.paired(seeds + np.array([0.010, 0.011, 0.009, 0.010, 0.010]), seeds)
    assert e.above and e.mean == pytest.approx(0.01)
    # By scipy.stats.t.interval(.95, 4, .01, se), se = 0.000316228.
    assert (e.low, e.high) == pytest.approx((0.009122, 0.010878), abs=1e-6)
    assert not results.estimate(seeds - 0.3).above


def test_one_seed_has_no_spread():
    e = results.paired([0.6], [0.5])
    assert not e.above and not e.below and tables.interval(e) == "+0.100"


def test_cells_show_mean_and_standard_error():
    assert tables.cell(results.estimate([0.0, 0.2])) == ".100 ± .100"
    assert tables.cell(results.estimate([1.0, 1.0])) == "1.000 ± .000"


def test_the_score_of_a_fixed_set_is_of_training(tmp_path):
    run = runs.Run(tmp_path, "", {"train.steps": 40})
    # The last 1 of 20 parts of the steps.
    lines = [{f"train/pass_at_{k}": i / 40 for k in design.KS} for i in range(40)]
    lines[-1] |= {f"eval/pass_at_{k}": k / 10 for k in design.KS}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert results.score(run, True) == pytest.approx((38 + 39) / 80)
    assert results.score(run, False) == pytest.approx(0.62)


# -- the page -------------------------------------------------------------------------------------


def test_paragraphs_that_people_wrote_stay():
    made = page.update("# Title\n", {"claim a": "one", "claim b": "two"})
    written = made.replace("<!-- claim b:", "By hand: \\1.\n\n<!-- claim b:")
    again = page.update(written, {"claim a": "new \\2", "claim b": "two"})
    assert again == written.replace("one", "new \\2")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--problems=chess", "expected some of fog, plain"),
        ("--seeds=0,0", "expected different whole numbers"),
        ("--seeds=1,100", "none of those that rates are tuned on (100, 101)"),
    ],
)
def test_bad_flags_answer_at_once(flag, message):
    wrong = _say(flag)
    assert wrong.returncode and message in wrong.stdout + wrong.stderr


def test_help_shows_the_flags():
    assert "--[no]quick" in _say("--helpshort").stdout


def _say(*flags):
    command = [sys.executable, "-m", "experiments.study", *flags]
    return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parents[1])
