"""Tests of the study on a pretrained model: what it runs, its rules, and its page."""

import copy
import dataclasses
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest

from experiments.pretrained import claims, design, page
from experiments.study import base, plan, report, results, runs
from experiments.study.base import Cell
from pkpo_jax.training import checks, saved_run
from tests import pages
from tests.experiments.test_study import Trainer, config_of

RUNS = len(design.SEEDS)


@pytest.mark.parametrize("name", design.PROBLEMS)
def test_every_run_is_one_that_the_trainer_accepts(name):
    problems = design.PROBLEMS[name]
    for method in design.METHODS.values():
        keys = problems.run(method, Cell(0), 1e-6, start="")
        # The checkpoint is not here, and its size is what tests can read without it.
        config = saved_run.override(config_of(problems.config), {**keys, "model.size": "tiny"})
        config.prompt.shots = 0
        checks.validate(config, 1)
        assert config.checkpoint.every == 10 and config.k == keys["k"]


def test_all_runs_start_from_the_checkpoint_and_rates_have_other_seeds(tmp_path):
    trainer = Trainer(lambda rate: -abs(rate - 1e-6))
    scope = base.Scope({"sums": ("k1", "down")}, (0, 1, 2))
    found = plan.run(page.STUDY, tmp_path, scope, ["sums"], (0, 1, 2), trainer, "/weights")
    names = [log.relative_to(tmp_path / "sums") for log in trainer.done]
    assert not [name for name in names if name.name.startswith("base")]
    assert len([name for name in names if name.parent.name == "reported"]) == 2 * 3
    sweep = plan.Sweep(tmp_path, design.DESIGN, design.PROBLEMS["sums"], trainer, "/weights")
    tuning = [*itertools.chain(*sweep.tune(["k1"])["k1"].values())]
    reported = sweep.report({"k1": 1e-6}, scope.cells((0, 1, 2)))["k1"]
    assert {run.changes["model.checkpoint"] for run in tuning + reported} == {"/weights"}
    for key in ("seed", "task.seed"):
        assert not {run.changes[key] for run in tuning} & {run.changes[key] for run in reported}
    assert found["problems"]["sums"]["methods"]["k1"]["rate"] == 1e-6
    assert found["problems"]["sums"]["base"]["pass_at_1"] and "variance" not in found


def test_a_policy_that_is_not_kept_goes_when_its_run_is_complete(tmp_path, monkeypatch):
    monkeypatch.chdir(pages.ROOT)
    run = runs.Run(tmp_path / "run", "configs/maze_tiny.py", {"train.steps": 1}, keep=False)
    script = (
        "import json, pathlib, sys; from experiments.study import runs; "
        "from pkpo_jax.training import policies, saved_run; w = pathlib.Path(sys.argv[1]); "
        "(w / 'checkpoints' / '1' / 'params').mkdir(parents=True); "
        "c = saved_run.override(runs._config('configs/maze_tiny.py'), {'train.steps': 1}); "
        "(w / 'config.json').write_text(json.dumps(policies.resolve(c).to_dict())); "
        "(w / 'metrics.jsonl').write_text('{\"step\": 1}\\n')"
    )
    command = [sys.executable, "-c", script, str(run.workdir)]
    monkeypatch.setattr(runs.Run, "command", lambda self: command)
    assert not run.complete()
    runs.run_all([run], workers=1, cache=tmp_path, title="run", all_cores=True)
    assert run.complete() and not (run.workdir / "checkpoints").exists()
    assert not dataclasses.replace(run, keep=True).complete()
    # A study that was stopped before it deleted the policy does so when it goes on.
    (run.workdir / "checkpoints" / "1").mkdir(parents=True)
    monkeypatch.setattr(runs.Run, "command", lambda self: pytest.fail("is not run again"))
    runs.run_all([run], workers=1, cache=tmp_path, title="run", all_cores=True)
    assert not (run.workdir / "checkpoints").exists()


def test_the_hours_are_those_of_runs_after_each_other():
    full = design.FULL
    counted, hours = plan.estimate(design.DESIGN, full, list(full.methods), full.seeds)
    # Six methods on two sets of problems, each with four rates and three seeds.
    assert counted == 6 * 2 * (4 + 3)
    assert hours == pytest.approx(counted * (330 + 100 * 14) / 3600)


def test_the_command_says_what_it_needs():
    command = [sys.executable, "-m", "experiments.pretrained", "--quick"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=pages.ROOT)
    assert said.returncode and "directory of pretrained parameters" in said.stdout + said.stderr


def test_a_part_has_its_methods_alone():
    scope = base.Scope(
        {"sums": ("k1", "k2"), "countdown": ("k1", "k8")},
        (0,),
        at_rates={"sums": {1e-6: ("k1",)}},
        longer={"countdown": (200, ("k1", "k8"))},
    ).only(["k8"])
    assert scope.methods == {"countdown": ("k8",)}
    assert scope.at_rates == {"sums": {}} and scope.longer == {"countdown": (200, ("k8",))}


# -- rules ----------------------------------------------------------------------------------------

_AT = {
    "k1": (0.20, 0.24, 0.28, 0.32, 0.36),
    "k2": (0.19, 0.28, 0.36, 0.44, 0.50),
    "k4": (0.18, 0.26, 0.38, 0.50, 0.60),
    "k8": (0.17, 0.25, 0.37, 0.52, 0.66),
    "down": (0.20, 0.28, 0.36, 0.46, 0.56),
    "mixture": (0.20, 0.28, 0.38, 0.52, 0.66),
}


def _results(changes=(), seeds=RUNS):
    jitter = 1e-3 * np.random.default_rng(0).standard_normal(seeds)
    methods = {}
    for method, at in {**_AT, **dict(changes)}.items():
        last = {f"pass_at_{k}": value for k, value in zip(base.KS, at, strict=True)}
        last |= {"entropy": at[-1], "distinct_wrong": at[-1]}
        rows = {name: [value + x for x in jitter] for name, value in last.items()}
        short = {name: rows[name] for name in ("entropy", "pass_at_1", "pass_at_16")}
        short |= {name: [0.1] * seeds for name in ("dead_groups", "equal_groups")}
        methods[method] = {"rate": 1e-6, "eval": {"50": rows, "100": rows}, "last": short}
        methods[method] |= {"train": {}, "step_s": [14.0] * seeds}
        row = {"score": 0.3, **{f"pass_at_{k}": 0.3 for k in base.KS}}
        methods[method]["grid"] = {"1e-06": row}
    base_ = {name: [value / 2 for value in values] for name, values in rows.items()}
    one = {"base": base_, "methods": methods}
    found = {"problems": dict.fromkeys(design.PROBLEMS, one), "tuned": True, "machine": "here"}
    return {**found, "format": results.FORMAT, "seeds": list(range(seeds)), "draws": [0]}


def _verdicts(found):
    return {finding.letter: finding.verdict for finding in claims.findings(found)}


def test_every_claim_can_be_reproduced():
    assert _verdicts(_results()) == dict.fromkeys("abcd", base.REPRODUCED)


@pytest.mark.parametrize(
    ("letter", "method", "at", "outcome"),
    [
        ("a", "k8", (0.21, 0.25, 0.37, 0.52, 0.66), base.PARTLY),
        ("b", "k8", (0.17, 0.25, 0.37, 0.52, 0.30), base.NOT),
        ("c", "down", (0.17, 0.28, 0.36, 0.46, 0.56), base.PARTLY),
        ("d", "mixture", (0.10, 0.28, 0.38, 0.52, 0.66), base.NOT),
    ],
)
def test_a_method_that_is_too_good_or_too_bad_tells(letter, method, at, outcome):
    assert _verdicts(_results({method: at}))[letter] == outcome


def test_one_seed_is_no_evidence():
    assert set(_verdicts(_results(seeds=1)).values()) == {base.UNTESTED}


def test_the_page_says_what_ran_and_what_did_not(tmp_path):
    found = _results(seeds=1)
    del found["problems"]["countdown"]
    found["problems"]["sums"]["methods"].pop("mixture")
    report.write(page.STUDY, found, tmp_path)
    written = (tmp_path / "RESULTS.md").read_text()
    assert "- few-shot sums of three digits: PKPO mean of k = 1..8" in written
    assert "- few-shot countdown with three numbers: everything" in written
    assert "- of 3 runs of each method: 2" in written
    assert "The tiny policy's verdict, by a similar rule: partly reproduced." in written
    assert "| entropy, nats a token | PKPO k = 8 | .330 | .660 | .660 |" in written
    report.write(page.STUDY, _results(), tmp_path)
    assert "Not run:" not in (tmp_path / "RESULTS.md").read_text()


def test_the_legend_names_the_methods_of_every_panel(tmp_path, monkeypatch):
    found, named = _results(), []
    sets = {name: copy.deepcopy(one) for name, one in found["problems"].items()}
    del list(sets.values())[-1]["methods"]["k8"]

    def savefig(figure, *_, **__):
        named.append([text.get_text() for text in figure.legends[0].get_texts()])

    monkeypatch.setattr(page.Figure, "savefig", savefig)
    page.STUDY.draw({**found, "problems": sets}, tmp_path)
    (texts,) = named
    assert sorted(texts) == sorted(map(design.DESIGN.label, ["base", *_AT]))


def test_the_page_kept_has_a_place_for_every_part():
    kept = (pages.ROOT / "experiments" / "pretrained" / "RESULTS.md").read_text()
    made = report.blocks(page.STUDY, _results(), [])
    assert re.findall("<!-- (.*?): made by a command -->", kept) == list(made)
