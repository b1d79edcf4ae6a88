"""The study's claims: each can be reproduced, and each can fail."""

import json
import re

import numpy as np
import pytest

from experiments.study import claims, claims_of_k, design, finding, report, results, runs, tables


def _run(at, seed, jitter=0.0, steps=200):
    last = {f"pass_at_{k}": v + jitter for k, v in zip(design.KS, at, strict=True)}
    last |= {"entropy": at[-1], "distinct_wrong": at[-1]}
    train = {"step": [steps // 4 * i for i in (1, 2, 3, 4)]}
    train |= {name: [v] * 4 for name, v in last.items()}
    train |= {"dead_groups": [0.4] * 4, "equal_groups": [0.2] * 4}
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
    names = ("5%", "25%", "50%", "75%", "95%", "mean", "within", "solved")
    return {
        "methods": methods,
        "pass_rates": [dict.fromkeys(names, 0.1)] * seeds,
        "at_rates": {f"{design.ONE_RATE:g}": {"methods": methods}},
        "commands": {m: ["python", f"--config.k={m}"] for m in ("base", *finals)},
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


def test_of_one_seed_no_spread_is_shown():
    found = _everything()
    found["seeds"] = [0]
    for problems in found["problems"].values():
        sets = [problems, problems.get("longer"), *problems.get("at_rates", {}).values()]
        for methods in (of["methods"] for of in sets if of):
            for name, method in methods.items():
                methods[name] = {**method, "runs": method["runs"][:1]}
        problems["pass_rates"] = problems["pass_rates"][:1]
    found["variance"] = {policy: of[:1] for policy, of in found["variance"].items()}
    page = "\n".join(report.blocks(found, []).values())
    assert "±" not in page and not re.search(r"\b(nan|inf)\b", page)
    assert page.count(finding.UNTESTED) == 8


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
    steps, longer = design.FULL.longer["fog"]
    fog["longer"] = {"steps": steps, "methods": {m: fog["methods"][m] for m in longer}}
    hard = {m: _DIAGONAL[m] for m in ("k1", "k4", "k8")} | {"k4": (0.70, 0.7, 0.8, 0.9, 0.9)}
    hard["k8"] = (0.65, 0.7, 0.8, 0.9, 0.95)
    found["problems"]["hard"] = {
        **_set(hard),
        "longer": {"steps": 1500, "methods": _set(hard)["methods"]},
    }
    names = ["none", "loo", "centered", "disjoint groups", "loo_minus_one"]
    row = {"k": 4, "noise": 2.0, "signal": 1.0, "signal_error": 0.1}
    found["variance"] = {"before RL": []}
    for seed in range(5):
        rows = {name: {**row, "log_ratio": 0.7 + seed / 50} for name in names}
        rows["loo_minus_one"]["log_ratio"] = 0.0
        rows["rloo"] = {**row, "k": 1, "log_ratio": -1.0}
        found["variance"]["before RL"].append({"k": 4, "estimators": rows})
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


def test_longer_training_is_shown_where_it_was_done():
    shown = {f.letter: f.shown for f in claims.findings(_everything())}
    after = {letter: "After 1000 steps in place of 200:" in shown[letter] for letter in "aceg"}
    assert after == {"a": True, "c": True, "e": False, "g": True}


def test_a_hard_set_where_plain_rl_goes_on_is_not_the_claims():
    found = _everything()
    for run in found["problems"]["hard"]["methods"]["k1"]["runs"]:
        run["train"]["cumulative_solve_rate"] = [0.0, 0.0, 0.0, 1.0]
    assert _verdicts(found)["d"] == finding.PARTLY


def test_variance_and_cost_within_their_errors_are_no_evidence():
    found = _everything()
    found["variance"]["before RL"][0]["estimators"]["centered"]["log_ratio"] = -1.0
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
