"""Tests of the referee: what it runs, that each question can be answered either way, its page."""

import itertools
import pathlib
import re

import numpy as np
import pytest

from experiments.referee import claims, design, optimum, page
from experiments.study import base, plan, report, results
from experiments.study.base import Cell
from experiments.study.measures import Set
from pkpo_jax import tasks
from pkpo_jax.training import checks, saved_run
from tests import pages
from tests.experiments.test_study import Trainer, config_of

SETS = ("fog", "sums", "modes")


# -- what is run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", design.PROBLEMS)
def test_every_run_is_one_that_the_trainer_accepts(name):
    problems = design.PROBLEMS[name]
    config = config_of(problems.config)
    checks.validate(saved_run.override(config, problems.base(Cell(0))), 1)
    for method in design.FULL.methods[name]:
        keys = problems.run(design.METHODS[method], Cell(0), 1e-3, start="")
        checks.validate(saved_run.override(config, keys), 1)


def test_all_methods_of_the_field_are_run():
    run = set(itertools.chain(*design.FULL.methods.values()))
    assert run == set(design.METHODS)
    keys = [method.keys for method in design.METHODS.values()]
    names = {one.get("estimator.name", "pkpo") for one in keys}
    wanted = {"pkpo", "maxrl", "passk_training", "grpo", "edas", "rarity", "poly_epo", "pacevolve"}
    assert wanted <= names
    assert {"ppo", "gspo", "cispo"} == {one["loss.policy"] for one in keys if "loss.policy" in one}
    assert any(one.get("loss.kl") == "sage" for one in keys)
    assert any(one.get("loss.token_weights") == "resrl" for one in keys)


def test_rates_are_tuned_on_other_seeds_and_problems_for_all_methods_alike(tmp_path):
    trainer = Trainer(lambda rate: rate)
    sweep = plan.Sweep(tmp_path, design.DESIGN, design.PROBLEMS["fog"], trainer)
    grids = sweep.tune(["k1", "edas"])
    tuning = [run for grid in grids.values() for at in grid.values() for run in at]
    reported = sweep.report({"k1": 6e-4}, design.FULL.cells(design.SEEDS))["k1"]
    for key in ("seed", "task.seed"):
        seen = [{run.changes[key] for run in group} for group in (tuning, reported)]
        assert not seen[0] & seen[1]
    assert list(grids["k1"]) == list(grids["edas"])
    # Five seeds on each of three draws of problems, each in a directory of its own.
    cells = {(run.changes["seed"], run.changes["task.seed"]) for run in reported}
    assert len(cells) == len({run.workdir for run in reported}) == 15


def test_the_whole_fits_in_a_day_of_one_core_and_the_quick_form_in_minutes():
    full, quick = design.FULL, design.QUICK
    runs, hours = plan.estimate(design.DESIGN, full, list(full.methods), full.seeds)
    assert runs > 1000 and 12 < hours < 24
    _, hours = plan.estimate(design.DESIGN, quick, list(quick.methods), quick.seeds)
    assert hours < 0.5


def test_an_estimate_counts_what_a_study_runs(tmp_path):
    methods = ("k1", "k4", "entropy_.01", "entropy_.05")
    scope = base.Scope({"hard": methods}, (0, 1), longer={"hard": (900, ("k1",))}, draws=(0, 1))
    # The best rate is at an end, so that every grid grows, as the estimate counts it.
    trainer = Trainer(lambda rate: rate)
    study = page.STUDY
    found = plan.run(study, tmp_path, scope, ["hard"], (0, 1), trainer)
    counted, hours = plan.estimate(design.DESIGN, scope, ["hard"], (0, 1))
    pass_rates = 4
    assert counted == len(trainer.done) - pass_rates
    assert hours > 0 and found["draws"] == [0, 1]
    assert len(found["problems"]["hard"]["methods"]["k1"]["eval"]["300"]["pass_at_1"]) == 4


# -- rules ----------------------------------------------------------------------------------------


def _method(at, distinct, runs, *, steps, seconds=0.1):
    """Returns results of a method whose pass@k and distinct right answers rise in four steps.

    Runs differ by a noise that all methods share, as they share their seeds.
    """
    jitter = 1e-3 * np.random.default_rng(0).standard_normal(runs)
    last = {f"pass_at_{k}": value for k, value in zip(base.KS, at, strict=True)}
    last |= {"entropy": 0.5, "distinct_wrong": 0.5, "mode_coverage": 0.5}
    last |= {name: distinct for name in design.PROBLEMS["modes"].evaluated[:-1]}

    def rows(share):
        return {name: [share * value + x for x in jitter] for name, value in last.items()}

    return {
        "rate": 6e-4,
        "eval": {str(steps * i // 4): rows(i / 4) for i in (1, 2, 3, 4)},
        "last": {**rows(1.0), "dead_groups": [0.1] * runs, "equal_groups": [0.1] * runs},
        "train": {
            "cumulative_solve_rate": [[at[-1] / 2 + x, at[-1] + x] for x in jitter],
            "pass_at_1": [[at[0] + x] * 2 for x in jitter],
        },
        "step_s": [seconds] * runs,
    }


_RISING = (0.50, 0.60, 0.70, 0.80, 0.90)


def _results(changes=(), draws=3, seeds=5):
    """Returns results in which methods differ only as `changes` {(set, method): arguments} say."""
    changes, runs = dict(changes), draws * seeds
    problems = {}
    for name, methods in design.FULL.methods.items():
        kept = [m for m in methods if m not in design.BONUSES[1:]]
        steps = design.PROBLEMS[name].steps
        made = {}
        for method in kept:
            at, distinct, *more = changes.get((name, method), (_RISING, 1.0))
            made[method] = _method(at, distinct, runs, steps=steps, **dict(*more))
        first = made["k1"]["eval"][str(steps)]
        problems[name] = {
            "base": {metric: [value / 9 for value in values] for metric, values in first.items()},
            "methods": made,
        }
    found = {"format": results.FORMAT, "problems": problems, "tuned": True, "machine": "here"}
    return {**found, "seeds": list(range(seeds)), "draws": list(range(draws))}


def _of(found):
    return {finding.letter: finding for finding in claims.findings(found)}


def test_methods_that_do_not_differ_settle_nothing():
    found = _of(_results())
    # All are leaders, none is dominated, and none is slower.
    assert [found[x].verdict for x in "afg"] == [claims.YES] * 3
    assert [found[x].verdict for x in "bcde"] == [claims.NO] * 4


def test_a_winner_at_some_k_is_named():
    best = {(name, "maxrl"): ((0.6, 0.6, 0.7, 0.8, 0.9), 1.0) for name in SETS}
    found = _results(best)
    assert _of(found)["a"].verdict == claims.IN_PART
    for name in SETS:
        problems = Set(found["problems"][name], design.DESIGN, name, 3)
        assert claims.leaders(problems, 1) == ["maxrl"]
        assert "k4" in claims.leaders(problems, 4)


def test_a_difference_that_one_draw_contradicts_is_none():
    one, three = (Set({}, design.DESIGN, "fog", draws) for draws in (1, 3))
    # The third draw is lower by less than the first two are higher.
    differences = [0.1] * 10 + [-0.001] * 5
    more = [0.5 + difference + (-1) ** i / 1e4 for i, difference in enumerate(differences)]
    assert one.higher(more, [0.5] * 15) and not three.higher(more, [0.5] * 15)
    assert three.higher([0.6, 0.61] * 6, [0.5] * 12)


def test_more_comparisons_need_clearer_differences():
    problems = Set({}, design.DESIGN, "fog", 1)
    a = [0.01, 0.02, 0.001, 0.015, 0.01]
    assert problems.higher(a, [0.0] * 5) and not problems.higher(a, [0.0] * 5, 25)


@pytest.mark.parametrize(
    ("at", "distinct", "group"),
    [
        # RLOO has 1.0 at its end, and half of that at half of its pass@1.
        ((0.25, 0.6, 0.7, 0.8, 0.9), 0.8, "found"),
        ((0.25, 0.6, 0.7, 0.8, 0.9), 0.4, "neither"),
        ((0.9, 0.9, 0.9, 0.9, 0.9), 1.2, "found"),
    ],
)
def test_diversity_is_compared_at_equal_pass_at_1(at, distinct, group):
    found = _of(_results({("modes", "maxrl"): (at, distinct)}))["b"]
    groups = dict(part.split(": ") for part in found.reasons.rstrip(".").split("; "))
    assert "MaxRL" in groups[group]


def test_diversity_that_an_earlier_stop_has_too_is_bought():
    found = _results({("modes", "maxrl"): ((0.25, 0.6, 0.7, 0.8, 0.9), 1.1)})
    # Halfway, RLOO gives more different answers than at its end.
    halfway = found["problems"]["modes"]["methods"]["k1"]["eval"]["75"]
    halfway["distinct_correct_8"] = [1.2] * 15
    assert "bought: MaxRL" in _of(found)["b"].reasons


def test_the_direction_of_annealing_can_be_told_and_can_be_a_trade():
    better = {(n, m): ((0.6, *_RISING[1:]), 1.0) for n in SETS for m in ("down", "pace_down")}
    found = _of(_results(better))["c"]
    assert found.verdict == claims.YES and "down higher at pass@1" in found.reasons
    trade = {(n, m): ((0.6, *_RISING[1:-1], 0.8), 1.0) for n in SETS for m in ("down", "pace_down")}
    found = _of(_results(trade))["c"]
    assert found.verdict == claims.NO
    assert "down higher at pass@1, up higher at pass@16" in found.reasons


def test_edas_helps_where_it_does():
    good = {(n, "edas"): ((0.6, 0.65, 0.75, 0.85, 0.95), 1.0) for n in SETS}
    behind = {(n, "k4"): ((0.4, *_RISING[1:]), 1.0) for n in SETS}
    assert _of(_results(good))["d"].verdict == claims.IN_PART
    assert _of(_results({**good, **behind}))["d"].verdict == claims.YES


def test_a_collapse_is_seen_where_it_is():
    collapsed = {("hard", "sgd_k1"): ((0.1, 0.1, 0.1, 0.1, 0.12), 1.0)}
    found = _of(_results(collapsed))["e"]
    assert found.verdict == claims.IN_PART and list(found.met) == [False, True, False]
    less = {("hard", "sgd_k1"): ((0.4, 0.5, 0.6, 0.6, 0.6), 1.0)}
    assert _of(_results(less))["e"].verdict == claims.NO


def test_a_loss_behind_an_estimator_and_a_slow_method_tell():
    behind = {("fog", "sage"): ((0.4, 0.5, 0.6, 0.7, 0.8), 1.0)}
    assert _of(_results(behind))["f"].verdict == claims.IN_PART
    slow = {("fog", "poly_epo"): (_RISING, 1.0, {"seconds": 0.2})}
    found = _of(_results(slow))["g"]
    assert found.verdict == claims.IN_PART and "Poly-EPO k = 4 2.00" in found.reasons


@pytest.mark.parametrize("seeds", [1, 4])
def test_few_runs_are_no_evidence(seeds):
    found = _of(_results(draws=1, seeds=seeds))
    assert {finding.verdict for finding in found.values()} == {claims.UNTESTED}


# -- optimum and page -----------------------------------------------------------------------------


def test_the_optimum_of_distinct_answers_is_that_of_a_search():
    keys = {k.removeprefix("task."): v for k, v in design.PROBLEMS["modes"].changes.items()}
    task = tasks.Maze(test_problems=8, train_problems=8, **keys)
    found = optimum.optimum(task, ks=(1, 4), longest=8, problems=8)
    assert found["distinct_correct"][1] == pytest.approx(1.0)
    rng, best = np.random.default_rng(0), []
    for problem in task.problems("test"):
        count = optimum.modes(problem["grid"], 8)
        policies = [*rng.dirichlet(np.ones(count), 200), np.full(count, 1 / count)]
        best.append(max((1 - (1 - p) ** 4).sum() for p in policies))
    assert found["distinct_correct"][4] == pytest.approx(np.mean(best))
    with pytest.raises(ValueError, match="without fog"):
        optimum.optimum(tasks.Maze(), ks=(1,), longest=8, problems=1)


def test_the_page_shows_every_question(tmp_path):
    found = _results()
    for name in found["problems"]:
        row = {"score": 0.7, **{f"pass_at_{k}": 0.7 for k in base.KS}}
        for method in found["problems"][name]["methods"].values():
            method["grid"] = {"0.0006": row}
    at = {str(k): 0.9 for k in base.KS}
    found["optimum"] = {"fog": {"pass_at": at}, "modes": {"distinct_correct": at}}
    report.write(page.STUDY, found, tmp_path)
    written = (tmp_path / "RESULTS.md").read_text()
    assert all(f"<!-- claim {letter}:" in written for letter in "abcdefg")
    for path in (tmp_path / "figures").iterdir():
        assert f"(figures/{path.name})" in written
    tables = (tmp_path / "TABLES.md").read_text()
    assert all(one.title in tables for one in design.PROBLEMS.values())
    assert "## The exact optimum on fogged mazes" in tables


def test_the_legend_names_the_methods_of_every_panel(tmp_path, monkeypatch):
    found, named = _results(), []
    del found["problems"]["modes"]["methods"]["k2"]

    def savefig(figure, *_, **__):
        named.append([text.get_text() for text in figure.legends[0].get_texts()])

    monkeypatch.setattr(page.Figure, "savefig", savefig)
    page.STUDY.draw(found, tmp_path)
    assert ["PKPO k = 2" in texts for texts in named] == [True, False]
    assert all(len(texts) == len(set(texts)) for texts in named)


def test_the_flags_of_each_question_run_what_it_needs(tmp_path, monkeypatch):
    monkeypatch.setattr(page.Figure, "savefig", lambda *_, **__: None)
    written = (pages.ROOT / "experiments" / "referee" / "RESULTS.md").read_text()
    for letter in "abcdef":
        own = written[written.index(f"\n## {letter}.") : written.index(f"<!-- claim {letter}:")]
        flags = dict(re.findall(r"--(\w+)=([\w.,]+)", own))
        methods = flags.get("methods", ",".join(design.METHODS)).split(",")
        scope = design.FULL.only(methods)
        names = flags["problems"].split(",")
        found = _results()
        found["problems"] = {name: found["problems"][name] for name in names}
        for name in names:
            kept = found["problems"][name]["methods"]
            for method in set(kept) - set(scope.methods[name]):
                del kept[method]
        assert letter in _of(found)
        report.write(page.STUDY, found, tmp_path)
        assert f"<!-- claim {letter}:" in (tmp_path / "RESULTS.md").read_text()
        _, hours = plan.estimate(design.DESIGN, scope, names, scope.seeds)
        assert own.split("## ")[1].split("\n\n")[1].startswith(f"{hours:.1f} core-hours")


def test_the_page_kept_is_what_its_results_say():
    folder = pathlib.Path(design.__file__).parent
    kept = results.load(folder / "results.json")
    drawn = sorted(path.name for path in (folder / "figures").glob("*.png"))
    written = (folder / "RESULTS.md").read_text()
    assert report.update(written, report.blocks(page.STUDY, kept, drawn)) == written
    assert (folder / "TABLES.md").read_text() == report.all_tables(page.STUDY, kept)
