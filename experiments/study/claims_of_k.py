"""The claims about k: what each compares, its rule, and the tables that show it.

A rule was written before there were results to read by it. "Higher" without a word more means that
the 95% interval of the difference, paired by seed, is above 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.study import design, tables
from experiments.study.finding import (
    KS,
    NOT,
    PARTLY,
    PKPO,
    REPRODUCED,
    Finding,
    difference,
    difference_table,
    label,
    listed,
    paragraphs,
    pass_table,
    verdict,
)
from experiments.study.results import Set, estimate, paired


def diagonal(results: Mapping[str, Any]) -> Finding:
    sets = measured_sets(results, *PKPO)
    shown, holds, reasons = [], [], []
    for name, problems in sets.items():
        best = {k: _best(problems, k) for k in KS}
        near = [abs(KS.index(best[k]) - KS.index(k)) <= 1 for k in KS]
        beats = [difference(problems, f"k{best[k]}", "k1", k).above for k in (4, 8, 16)]
        holds += [all(near), all(beats)]
        reasons.append(
            f"{name}: the best k_opt for k_eval {listed(KS)} is {listed(best.values())} "
            f"({sum(near)} of {len(KS)} on the diagonal or beside it), and the best at k_eval "
            f"4, 8, 16 is higher than k_opt = 1 at {sum(beats)} of 3"
        )
        shown += [
            f"{design.PROBLEMS[name].title}, held out:",
            pass_table(problems, ["base", *PKPO]),
        ]
        if name in results.get("optimum", {}):
            shown += [
                "The exact optimum there (a policy of any kind), and what the policy that is "
                "optimal for one k gives at another:",
                _optimum_table(results["optimum"][name]),
            ]
        falls = [f"{difference(problems, f'k{k}', 'k1', 1).mean:+.3f}" for k in KS[1:]]
        shown.append(f"pass@1 less that of k_opt = 1, for k_opt {listed(KS[1:])}: {listed(falls)}.")
    return Finding(
        "a",
        "The best k_opt for each k_eval is k_eval itself or its neighbour; pass@1 falls a little "
        "as k_opt grows.",
        "On each set of problems: for every k_eval the k_opt with the highest mean is at most one "
        "place from it among 1, 2, 4, 8, 16; and at k_eval 4, 8, 16 it is higher than k_opt = 1.",
        verdict(holds),
        "; ".join(reasons) + ".",
        paragraphs(shown),
    )


def throughout(results: Mapping[str, Any]) -> Finding:
    problems = Set(results["problems"]["fog"])
    ks = ["k1", "k2", "k4", "k8"]
    measures = {
        "entropy (nats a token)": lambda m: problems.evaluated(m, "entropy"),
        "distinct wrong answers / wrong answers": lambda m: problems.evaluated(m, "distinct_wrong"),
        "cumulative solve rate": lambda m: problems.curve(m, "cumulative_solve_rate"),
    }
    rows, holds, reasons = [], [], []
    for measure, of in measures.items():
        wanted = [at for at in problems.evaluated("k1", "entropy")[0] if at]
        higher, ordered = [], []
        values = {}
        for method in PKPO:
            steps, seeds = of(method)
            at = [min(range(len(steps)), key=lambda i: abs(steps[i] - w)) for w in wanted]
            values[method] = [[seed[i] for seed in seeds] for i in at]
            cells = [tables.cell(estimate(v)) for v in values[method]]
            rows.append([measure, label(method), *cells])
        for i in range(len(wanted)):
            higher.append(paired(values["k8"][i], values["k1"][i]).above)
            means = [estimate(values[m][i]).mean for m in ks]
            ordered.append(means == sorted(means))
        holds += [all(higher), all(ordered)]
        reasons.append(
            f"{measure}: k_opt = 8 above 1 at {sum(higher)} of {len(wanted)} evaluations, "
            f"1 < 2 < 4 < 8 at {sum(ordered)}"
        )
    return Finding(
        "b",
        "Higher k_opt keeps entropy, answer diversity and cumulative solve rate higher throughout.",
        "On fogged mazes, for each of the three and at every evaluation after the first: k_opt = 8 "
        "is higher than 1; and the means of k_opt 1, 2, 4, 8 are in this order.",
        verdict(holds),
        "; ".join(reasons) + ".",
        tables.markdown(["", "", *(f"step {at}" for at in wanted)], rows, words=2),
    )


def annealing(results: Mapping[str, Any]) -> Finding:
    problems = Set(results["problems"]["fog"])
    methods = ["anneal_third", "anneal_two_thirds"]
    holds, reasons = [], []
    for method in methods:
        above = [difference(problems, method, "k1", k).above for k in KS[1:]]
        loss = difference(problems, method, "k1", 1)
        keeps = loss.low > -0.02
        holds += [all(above) and keeps]
        reasons.append(
            f"{label(method)}: higher than k = 1 at {sum(above)} of {len(above)} pass@k with "
            f"k > 1, pass@1 {tables.interval(loss)}"
        )
    any_above = any(difference(problems, m, "k1", k).above for m in methods for k in KS[1:])
    outcome = REPRODUCED if any(holds) else PARTLY if any_above else NOT
    return Finding(
        "c",
        "Annealing k from 8 to 1 beats k_opt = 1 on every pass@k with k > 1 and loses nothing on "
        "pass@1.",
        "On fogged mazes, for one of the two places of the change: higher than k_opt = 1 at "
        "pass@2, 4, 8 and 16, and the 95% interval of the difference at pass@1 stays above -0.02. "
        "Partly, if some pass@k is higher.",
        outcome,
        "; ".join(reasons) + ".",
        paragraphs(
            [
                pass_table(problems, ["base", "k1", "k8", *methods]),
                difference_table(problems, [(m, "k1") for m in methods]),
            ]
        ),
    )


def hard_set(results: Mapping[str, Any]) -> Finding:
    problems = Set(results["problems"]["hard"])
    others = [m for m in ("k4", "k8") if problems.has(m)]
    holds, reasons, rows = [], [], []
    measures = {
        "cumulative solve rate": lambda m: _last(problems.curve(m, "cumulative_solve_rate")),
        "pass@1, in training": lambda m: _last(problems.curve(m, "pass_at_1")),
        "pass@16, in training": lambda m: _last(problems.curve(m, "pass_at_16")),
        "pass@1, held out": lambda m: problems.pass_at(m, 1),
        "pass@16, held out": lambda m: problems.pass_at(m, 16),
    }
    for measure, of in measures.items():
        rows.append(
            [
                measure,
                *(tables.cell(estimate(of(m))) for m in ("k1", *others)),
                *(tables.interval(paired(of(m), of("k1"))) for m in others),
            ]
        )
    for measure in ("cumulative solve rate", "pass@1, in training"):
        of = measures[measure]
        above = [paired(of(m), of("k1")).above for m in others]
        holds.append(all(above))
        reasons.append(
            f"{measure}: k_opt {listed(o[1:] for o in others)} higher at {sum(above)} of "
            f"{len(others)}"
        )
    header = ["", *(label(m) for m in ("k1", *others)), *(f"{m[1:]} less 1" for m in others)]
    return Finding(
        "d",
        "There is a hard set where k_opt = 1 stalls and k_opt 4 and 8 learn, pass@1 included.",
        "On the hard set, at the end of training: cumulative solve rate, and pass@1 on the "
        "problems trained on, are higher for k_opt 4 and for 8 than for 1.",
        verdict(holds),
        "; ".join(reasons) + ".",
        tables.markdown(header, rows),
    )


def exploring(results: Mapping[str, Any]) -> Finding:
    problems = Set(results["problems"]["fog"])
    at_1 = difference(problems, "explore", "k1", 1)
    at_8 = difference(problems, "explore", "k8", 8)
    return Finding(
        "g",
        "pass@1, then pass@k, then pass@1 again (paper B's schedule) beats each alone.",
        "On fogged mazes: k = 1, 8, 1 is higher than k = 1 throughout at pass@1, and than k = 8 "
        "throughout at pass@8.",
        verdict([at_1.above, at_8.above]),
        f"pass@1 {tables.interval(at_1)}; pass@8 {tables.interval(at_8)}.",
        paragraphs(
            [
                pass_table(problems, ["base", "k1", "k8", "explore"]),
                difference_table(problems, [("explore", "k1"), ("explore", "k8")]),
            ]
        ),
    )


def one_k_a_prompt(results: Mapping[str, Any]) -> Finding:
    problems = Set(results["problems"]["fog"])
    others = ["k1", "k2", "k4", "k8", "anneal_third", "anneal_two_thirds"]
    dominated = [
        m
        for m in others
        if any(difference(problems, "per_prompt", m, k).above for k in KS)
        and not any(difference(problems, "per_prompt", m, k).below for k in KS)
    ]
    worse = [
        m
        for m in others
        if any(difference(problems, "per_prompt", m, k).below for k in KS)
        and not any(difference(problems, "per_prompt", m, k).above for k in KS)
    ]
    return Finding(
        "h",
        "One k a prompt, near 1/p for its measured pass rate p, against fixed and annealed k.",
        "No paper claims it. Reproduced here means that it is higher at some pass@k and lower at "
        "none than every fixed and annealed k; partly, than some.",
        verdict([m in dominated for m in others]),
        f"higher somewhere and lower nowhere than: {listed(map(label, dominated)) or 'none'}; "
        f"lower somewhere and higher nowhere than: {listed(map(label, worse)) or 'none'}.",
        paragraphs(
            [
                pass_table(problems, ["base", "per_prompt", *others]),
                difference_table(problems, [("per_prompt", m) for m in others]),
            ]
        ),
    )


def _best(problems: Set, k: int) -> int:
    return max(KS, key=lambda opt: estimate(problems.pass_at(f"k{opt}", k)).mean)


def _last(curve: tuple[list[int], list[list[float]]]) -> list[float]:
    return [seed[-1] for seed in curve[1]]


def measured_sets(results: Mapping[str, Any], *methods: str) -> dict[str, Set]:
    """Those with reported runs of these methods, on problems that are not seen again and again."""
    sets = {name: Set(data) for name, data in results["problems"].items()}
    return {n: s for n, s in sets.items() if s.has(*methods) and not design.PROBLEMS[n].fixed}


def _optimum_table(optimum: Mapping[str, Any]) -> str:
    rows = {f"optimal for k = {k}": optimum["matrix"][str(k)] for k in KS}
    rows["for k = 1, ties by pass@2"] = optimum["mixed"]
    cells = [[label, *(tables.number(row[str(k)]) for k in KS)] for label, row in rows.items()]
    return tables.markdown(["", *(f"pass@{k}" for k in KS)], cells)
