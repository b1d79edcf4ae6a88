"""The study: its estimators, its order of work, and how it reads results."""

import itertools
import json
import pathlib
import re
import subprocess
import sys

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
    from pkpo_jax.training import checks, stored

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
    line = "import os, json; p.write_text(json.dumps([os.environ['JAX_COMPILATION_CACHE_DIR'], "
    path = tmp_path / "found.json"
    # The core is given to the process once it runs.
    wait = "import time; time.sleep(0.3); "
    _run_all([_job(path, wait + line + "len(os.sched_getaffinity(0))]))")], tmp_path)
    assert json.loads(path.read_text()) == [str(tmp_path / "cache"), 1]


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


def test_a_directory_of_another_run_is_refused(tmp_path):
    run = runs.Run(tmp_path, "configs/maze_tiny.py", {"k": {0: 8, 5: 1}, "train.steps": 9})
    assert not run.complete()
    stored = {"k": {"0": 8, "5": 1}, "train": {"steps": 9}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "metrics.jsonl").write_text('{"step": 8}\n')
    assert not run.complete()
    (tmp_path / "metrics.jsonl").write_text('{"step": 8}\n{"step": 9}\n')
    assert not run.complete()
    (tmp_path / "checkpoints" / "9" / "params").mkdir(parents=True)
    assert run.complete()
    (tmp_path / "config.json").write_text(json.dumps({**stored, "k": 8}))
    with pytest.raises(runs.JobError, match=r"holds a run with k=8, and this study has"):
        run.complete()


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
    tuning = [run for at in sweep.tune(["k1"])["k1"].values() for run in at]
    reported = sweep.report({"k1": 6e-4}, design.SEEDS)["k1"]
    for key in ("seed", "task.seed"):
        seen = [{run.changes[key] for run in group} for group in (tuning, reported)]
        assert not seen[0] & seen[1]


# -- what is read from results --------------------------------------------------------------------


def _set(finals, seeds=5, noise=0.0):
    """Results of methods with these final pass@k, all seeds the same but for `noise`."""
    rng = np.random.default_rng(0)

    def run(method, seed):
        at = dict(zip(design.KS, finals[method], strict=True))
        jitter = noise * rng.standard_normal()
        last = {f"pass_at_{k}": v + jitter for k, v in at.items()}
        last |= {"entropy": at[16], "distinct_wrong": at[16]}
        curve = {"step": [100, 200], "cumulative_solve_rate": [at[16]] * 2}
        curve |= {f"pass_at_{k}": [v, v] for k, v in at.items()} | {"entropy": [at[16]] * 2}
        return {"seed": seed, "eval": {"0": dict(last), "200": last}, "train": curve, "step_s": 0.1}

    runs_of = {m: [run(m, seed) for seed in range(seeds)] for m in finals if m != "base"}
    first = {f"pass_at_{k}": v for k, v in zip(design.KS, finals["base"], strict=True)}
    for run in itertools.chain(*runs_of.values()):
        run["eval"]["0"] |= first
    return {"methods": {m: {"rate": 6e-4, "grid": {}, "runs": r} for m, r in runs_of.items()}}


_DIAGONAL = {
    "base": (0.1, 0.2, 0.3, 0.4, 0.5),
    "k1": (0.60, 0.62, 0.64, 0.66, 0.68),
    "k2": (0.58, 0.68, 0.74, 0.78, 0.80),
    "k4": (0.54, 0.66, 0.78, 0.84, 0.86),
    "k8": (0.48, 0.62, 0.76, 0.88, 0.92),
    "k16": (0.40, 0.54, 0.70, 0.86, 0.94),
}


def _results(finals, **more):
    return {"problems": {"fog": _set(finals, **more)}, "tuned": False, "machine": "here"}


def test_the_diagonal_is_seen_where_it_is_and_only_there():
    found = {f.letter: f for f in claims.findings(_results(_DIAGONAL, noise=1e-3))}
    assert set(found) == {"a", "b"}
    assert found["a"].verdict == finding.REPRODUCED
    worst_first = [_DIAGONAL["base"], *list(_DIAGONAL.values())[:0:-1]]
    reversed_ = dict(zip(_DIAGONAL, worst_first, strict=True))
    worse = {f.letter: f for f in claims.findings(_results(reversed_))}
    assert worse["a"].verdict == finding.NOT and worse["b"].verdict == finding.NOT


def test_noise_between_seeds_is_no_evidence():
    loud = claims_of_k.diagonal(_results(_DIAGONAL, noise=0.3))
    assert "higher than k_opt = 1 at 0 of 3" in loud.reasons


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
    run = runs.Run(tmp_path, "", {"train.steps": 2})
    lines = [{f"{p}/pass_at_{k}": v for k in design.KS} for p, v in (("train", 0.4),) * 2]
    lines[-1] |= {f"eval/pass_at_{k}": k / 10 for k in design.KS}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert results.score(run, True) == pytest.approx(0.4)
    assert results.score(run, False) == pytest.approx(0.62)


# -- the page -------------------------------------------------------------------------------------


def test_paragraphs_that_people_wrote_stay():
    made = page.update("# Title\n", {"claim a": "one", "claim b": "two"})
    written = made.replace("<!-- claim b:", "By hand: \\1.\n\n<!-- claim b:")
    again = page.update(written, {"claim a": "new \\2", "claim b": "two"})
    assert again == written.replace("one", "new \\2")


def test_the_page_is_what_its_results_say():
    kept = json.loads((FOLDER / "results.json").read_text())
    drawn = sorted(path.name for path in (FOLDER / "figures").glob("*.png"))
    written = (FOLDER / "RESULTS.md").read_text()
    assert page.update(written, report.blocks(kept, drawn)) == written
    assert set(re.findall(r"\(figures/(.*?)\)", written)) == set(drawn)


def test_the_results_kept_are_of_all_that_the_study_runs():
    kept = json.loads((FOLDER / "results.json").read_text())
    assert [f.letter for f in claims.findings(kept)] == list("abcdefghi")
    for name, methods in design.FULL.methods.items():
        problems = results.Set(kept["problems"][name])
        losers = [m for m in methods if not problems.has(m)]
        assert len(losers) == sum(
            len(set(g) & set(methods)) - 1 for g in design.ONE_OF if set(g) & set(methods)
        )
        for method in set(methods) - set(losers):
            assert [run["seed"] for run in problems.runs(method)] == list(design.SEEDS)


def test_help_and_bad_flags_answer_at_once():
    def say(*flags):
        command = [sys.executable, "-m", "experiments.study", *flags]
        return subprocess.run(command, capture_output=True, text=True, cwd=FOLDER.parents[1])

    assert "--quick" in say("--helpshort").stdout
    wrong = say("--problems=chess")
    assert wrong.returncode and "expected some of fog, plain" in wrong.stdout + wrong.stderr
