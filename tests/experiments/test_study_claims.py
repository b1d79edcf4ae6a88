"""Tests that each of the study's claims can be reproduced, and that each can fail."""

import json
import re

import numpy as np
import pytest

from experiments.study import base, claims, design, figures, measures, page, report, results, runs
from experiments.study.measures import estimate, paired


def _method(at, seeds, noise=0.0, steps=200, rng=None):
    """Returns results of a method with this final pass@k; seeds differ only by `noise`."""
    rng = rng or np.random.default_rng(0)
    jitter = noise * rng.standard_normal(seeds)

    def rows(values):
        return {name: [value + x for x in jitter] for name, value in values.items()}

    last = {f"pass_at_{k}": value for k, value in zip(base.KS, at, strict=True)}
    last |= {"entropy": at[-1], "distinct_wrong": at[-1]}
    # What is solved grows in proportion to pass@16.
    solved = [[at[-1] * i / 4 + x for i in (1, 2, 3, 4)] for x in jitter]
    curves = ("entropy", "pass_at_1", "pass_at_4")
    return {
        "rate": 6e-4,
        "eval": {str(steps * i // 4): rows(last) for i in (1, 2, 3, 4)},
        "last": rows({**last, "dead_groups": 0.4, "equal_groups": 0.2}),
        "train": {
            **{name: [[last[name] + x] * 4 for x in jitter] for name in curves},
            "cumulative_solve_rate": solved,
        },
        "step_s": [0.1] * seeds,
    }


def _set(finals, seeds=5, noise=0.0, steps=200):
    """Returns results of methods with these final pass@k."""
    rng = np.random.default_rng(0)
    methods = {m: _method(at, seeds, noise, steps, rng) for m, at in finals.items()}
    first = next(iter(methods.values()))["eval"][str(steps)]
    names = ("5%", "25%", "50%", "75%", "95%", "mean", "within", "solved")
    return {
        "base": {name: [value / 2 for value in values] for name, values in first.items()},
        "methods": methods,
        "pass_rates": {name: [0.1] * seeds for name in names},
        "at_rates": {f"{design.ONE_RATE:g}": {"methods": methods}},
    }


_DIAGONAL = {
    "k1": (0.60, 0.62, 0.64, 0.66, 0.68),
    "k2": (0.59, 0.68, 0.74, 0.78, 0.80),
    "k4": (0.58, 0.66, 0.78, 0.84, 0.86),
    "k8": (0.56, 0.62, 0.76, 0.88, 0.92),
    "k16": (0.40, 0.54, 0.70, 0.86, 0.94),
}


def _results(finals, seeds=5, **more):
    found = {"problems": {"fog": _set(finals, seeds, **more)}, "tuned": False}
    return {**found, "format": results.FORMAT, "machine": "here", "seeds": list(range(seeds))}


def _verdicts(found):
    return {finding.letter: finding.verdict for finding in claims.findings(found)}


def test_the_diagonal_is_seen_where_it_is_and_only_there():
    assert _verdicts(_results(_DIAGONAL, noise=1e-3)) == dict.fromkeys("ab", claims.REPRODUCED)
    worst_first = list(_DIAGONAL.values())[::-1]
    reversed_ = dict(zip(_DIAGONAL, worst_first, strict=True))
    assert _verdicts(_results(reversed_)) == dict.fromkeys("ab", claims.NOT)


def test_a_pass_at_1_that_falls_far_is_not_a_little():
    steep = {**_DIAGONAL, "k8": (0.5, *_DIAGONAL["k8"][1:])}
    assert _verdicts(_results(steep))["a"] == claims.PARTLY


def test_noise_between_seeds_is_no_evidence():
    loud = claims.diagonal(_results(_DIAGONAL, noise=0.3))
    assert "higher than k_opt = 1 at 0 of k_eval" in loud.reasons


def test_one_seed_is_no_evidence_either_way():
    assert set(_verdicts(_results(_DIAGONAL, seeds=1)).values()) == {base.UNTESTED}


def test_one_seed_shows_no_spread():
    found = _everything(seeds=1)
    text = "\n".join(
        [*report.blocks(page.STUDY, found, []).values(), report.all_tables(page.STUDY, found)]
    )
    assert "±" not in text.replace("mean ± standard error", "")
    assert not re.search(r"\b(nan|inf)\b", text)
    assert text.count(base.UNTESTED) == 8


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


def _everything(seeds=5):
    found = _results(_METHODS, seeds, noise=1e-3)
    fog = found["problems"]["fog"]
    fog["methods"]["entropy_.01"] = {}
    row = {"score": 0.7, **{f"pass_at_{k}": 0.7 for k in base.KS}}
    for method in fog["methods"].values():
        method["grid"] = {f"{rate:g}": row for rate in design.DESIGN.rates}
    steps, longer = design.FULL.longer["fog"]
    fog["longer"] = _set({m: _METHODS[m] for m in longer}, seeds, steps=steps)
    hard = {m: _DIAGONAL[m] for m in ("k1", "k4", "k8")} | {"k4": (0.70, 0.7, 0.8, 0.9, 0.9)}
    hard["k8"] = (0.65, 0.7, 0.8, 0.9, 0.95)
    found["problems"]["hard"] = {**_set(hard, seeds), "longer": _set(hard, seeds, steps=1500)}
    row = {"k": 4, "noise": [2.0] * seeds, "signal": [1.0] * seeds, "signal_error": [0.1] * seeds}
    row["log_ratio"] = [0.7 + seed / 50 for seed in range(seeds)]
    names = ("none", "loo", "centered", "disjoint groups")
    measured = {
        **dict.fromkeys(names, row),
        "loo_minus_one": {**row, "log_ratio": [0.0] * seeds},
        "rloo": {**row, "k": 1, "log_ratio": [-1.0] * seeds},
    }
    found["variance"] = {policy: {**measured} for policy in design.POLICIES}
    kind = {"seconds": 0.1, "ratio": 1.0, "interval": [0.99, 1.01]}
    variant = {"step": kind, "update": kind, "weights": {**kind, "seconds": 1e-5}}
    variants = {name: variant for name in ("k = 1", "k = 2", "RLOO")}
    found["cost"] = {"variants": variants, "compilations": 0}
    matrix = {str(k): {str(j): 0.9 for j in base.KS} for k in base.KS}
    found["optimum"] = {"fog": {"matrix": matrix, "mixed": matrix["1"]}}
    return {**found, "tuned": True}


def test_every_claim_can_be_reproduced():
    assert _verdicts(_everything()) == dict.fromkeys("abcdefghi", claims.REPRODUCED)


@pytest.mark.parametrize(
    ("letter", "method", "at", "outcome"),
    [
        ("c", "anneal_third", (0.50, 0.66, 0.70, 0.74, 0.78), claims.PARTLY),
        ("e", "centered", (0.58, 0.66, 0.79, 0.83, 0.85), claims.PARTLY),
        ("f", "b_full", (0.55, 0.64, 0.73, 0.78, 0.80), claims.PARTLY),
        ("f", "entropy_.05", (0.60, 0.62, 0.80, 0.67, 0.70), claims.PARTLY),
        ("g", "explore", (0.59, 0.64, 0.70, 0.90, 0.92), claims.PARTLY),
        ("g", "explore", (0.59, 0.64, 0.70, 0.80, 0.92), claims.NOT),
        ("h", "per_prompt", (0.59, 0.70, 0.79, 0.89, 0.95), claims.PARTLY),
        ("h", "per_prompt", (0.10, 0.10, 0.10, 0.10, 0.10), claims.NOT),
    ],
)
def test_a_method_that_is_too_good_or_too_bad_tells(letter, method, at, outcome):
    found = _everything()
    found["problems"]["fog"]["methods"][method] = _method(at, 5)
    assert _verdicts(found)[letter] == outcome


def test_longer_training_and_other_rates_have_tables():
    text = report.all_tables(page.STUDY, _everything())
    assert "### 1000 steps in place of 200" in text
    assert "### All with a learning rate of 0.0006" in text
    longer = text[text.index("### 1000 steps") :].split("###")[1]
    assert "k = 8, then 1 after 1/3 less PKPO k = 1 (RLOO)" in longer and "MaxRL" not in longer


def test_a_hard_set_where_plain_rl_goes_on_is_not_the_claims():
    found = _everything()
    curves = found["problems"]["hard"]["methods"]["k1"]["train"]
    curves["cumulative_solve_rate"] = [[0.0, 0.0, 0.0, 1.0]] * 5
    assert _verdicts(found)["d"] == claims.PARTLY


def test_variance_and_cost_within_their_errors_are_no_evidence():
    found = _everything()
    measured = found["variance"]["before RL"]
    noisy = [-1.0, *measured["centered"]["log_ratio"][1:]]
    measured["centered"] = {**measured["centered"], "log_ratio": noisy}
    found["cost"]["variants"]["k = 2"] = {
        **found["cost"]["variants"]["k = 2"],
        "update": {"seconds": 0.1, "ratio": 1.0, "interval": [0.7, 1.4]},
    }
    assert _verdicts(found)["e"] == _verdicts(found)["i"] == claims.PARTLY


def test_the_page_shows_every_claim_with_its_figure(tmp_path):
    report.write(page.STUDY, _everything(), tmp_path)
    written = (tmp_path / "RESULTS.md").read_text()
    figures = [path.name for path in (tmp_path / "figures").iterdir()]
    assert {name[0] for name in figures} == set("abcdf")
    assert all(f"(figures/{name})" in written for name in figures)
    assert all(f"<!-- claim {letter}:" in written for letter in "abcdefghi")
    # Results without the hard set remove it from the page.
    kept = _everything()
    del kept["problems"]["hard"]
    report.write(page.STUDY, kept, tmp_path)
    again = (tmp_path / "RESULTS.md").read_text()
    assert "d_hard" not in again and not (tmp_path / "figures" / "d_hard.png").exists()
    loaded = results.load(tmp_path / "results.json")
    assert results.dump(loaded) == results.dump(kept)


def test_a_method_has_one_colour_and_a_place_in_the_legend_whatever_panels_it_is_in():
    curve = [1, 2], [[0.1, 0.2]]
    figure = figures._panels({"a": {"k1": curve, "k8": curve}, "b": {"k8": curve}})
    names = [design.label("k1"), design.label("k8")]
    assert sorted(text.get_text() for text in figure.legends[0].get_texts()) == sorted(names)
    drawn = {(line.get_label(), line.get_color()) for ax in figure.axes for line in ax.lines}
    assert len(drawn) == 2 and {name for name, _ in drawn} == set(names)


def test_paired_differences_leave_out_what_seeds_share():
    seeds = np.array([0.1, 0.4, 0.2, 0.5, 0.3])
    e = paired(seeds + np.array([0.010, 0.011, 0.009, 0.010, 0.010]), seeds)
    assert e.above and e.mean == pytest.approx(0.01)
    # This is scipy.stats.t.interval(.95, 4, .01, se) with se = 0.000316228.
    assert (e.low, e.high) == pytest.approx((0.009122, 0.010878), abs=1e-6)
    assert not estimate(seeds - 0.3).above


def test_one_seed_has_no_spread():
    e = paired([0.6], [0.5])
    assert not e.above and not e.below and e.interval() == "+0.100"


def test_cells_show_mean_and_standard_error():
    assert estimate([0.0, 0.2]).cell() == ".100 ± .100"
    assert estimate([1.0, 1.0]).cell() == "1.000 ± .000"


def test_curves_have_the_steps_of_their_points():
    problems = measures.Set(_set(_DIAGONAL), design.DESIGN, "fog")
    assert problems.curve("k1", "entropy")[0] == [50, 100, 150, 200]
    assert problems.evaluated("k1", "entropy")[0] == [0, 50, 100, 150, 200]


def test_the_score_of_a_fixed_set_is_of_training(tmp_path):
    run = runs.Run(tmp_path, "", {"train.steps": 40})
    # Training counts over the last of 20 parts of the steps.
    lines = [{f"train/pass_at_{k}": i / 40 for k in base.KS} for i in range(40)]
    lines[-1] |= {f"eval/pass_at_{k}": k / 10 for k in base.KS}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert results.score(run, True) == pytest.approx((38 + 39) / 80)
    assert results.score(run, False) == pytest.approx(0.62)
