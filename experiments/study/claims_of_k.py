"""The claims about k: what each compares, its rule, and the tables that show it.

"Higher" without a word more means that the 95% interval of the difference, paired by seed, is above
0. The rules were written before the results that they read, but for what reviews of results
added, marked so: each addition makes a rule harder to meet.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
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
    further_tables,
    label,
    listed,
    paragraphs,
    pass_table,
    verdict,
)
from experiments.study.results import Set, estimate, paired


def diagonal(results: Mapping[str, Any]) -> Finding:
    sets = unseen(results, *PKPO)
    shown, holds, reasons = [], [], []
    for name, problems in sets.items():
        best = {k: _best(problems, k) for k in KS}
        near = [abs(KS.index(best[k]) - KS.index(k)) <= 1 for k in KS]
        beats = [difference(problems, f"k{k}", "k1", k).above for k in (4, 8, 16)]
        at_1 = [estimate(problems.pass_at(f"k{k}", 1)).mean for k in KS]
        little = at_1 == sorted(at_1)[::-1] and at_1[0] - at_1[KS.index(8)] <= 0.05
        holds += [all(near), all(beats), little]
        reasons.append(
            f"{design.PROBLEMS[name].title}: the best k_opt for k_eval {listed(KS)} is "
            f"{listed(best.values())} ({sum(near)} of {len(KS)} on the diagonal or "
            f"beside it); k_opt = k_eval is higher than k_opt = 1 at {sum(beats)} of k_eval 4, 8, "
            f"16; pass@1 for k_opt {listed(KS)} is {listed(map(tables.number, at_1))}"
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
        if results["tuned"]:
            neighbours = [(f"k{k}", f"k{j}") for j, k in itertools.pairwise(KS)]
            shown += [
                "Each k less its neighbour:",
                difference_table(problems, neighbours),
                "Prompts in the last steps of training that give no gradient:",
                _no_gradient(problems),
                *further_tables(problems, [(m, "k1") for m in PKPO[1:]]),
            ]
    return Finding(
        "a",
        "The best k_opt for each k_eval is k_eval itself or its neighbour; pass@1 falls a little "
        "as k_opt grows.",
        "On each set of problems: for every k_eval the k_opt with the highest mean is at most one "
        "place from it among 1, 2, 4, 8, 16; at k_eval 4, 8, 16 k_opt = k_eval (added: itself, not "
        "the best of its neighbours) is higher than k_opt = 1; and (added) pass@1 does not rise "
        "with k_opt, and at 8 is at most .05 below that at 1.",
        holds,
        verdict(holds),
        "; ".join(reasons) + ".",
        paragraphs(shown),
    )


def throughout(results: Mapping[str, Any]) -> Finding:
    fog = Set(results["problems"]["fog"])
    one_rate = f"all at {design.ONE_RATE:g}"
    sets = {one_rate: fog.at_rate(design.ONE_RATE)} | ({"tuned": fog} if results["tuned"] else {})
    measures = {
        (measure, rates): (problems, PKPO, name)
        for rates, problems in sets.items()
        for measure, name in (
            ("entropy, nats a token", "entropy"),
            ("distinct wrong answers / wrong", "distinct_wrong"),
            ("solved, mazes seen once", "cumulative_solve_rate"),
        )
    }
    if "hard" in results["problems"]:
        hard = Set(results["problems"]["hard"])
        ks = [m for m in PKPO if hard.has(m)]
        measures["solved, hard set", "tuned"] = (hard, ks, "cumulative_solve_rate")
    shown, holds, reasons = [], [], []
    for (measure, rates), (problems, methods, name) in measures.items():
        quarters = [problems.last_step * i // 4 for i in (1, 2, 3, 4)]
        of_steps = name == "cumulative_solve_rate"
        read = problems.curve if of_steps else problems.evaluated
        values = {m: _values_at(read(m, name), quarters) for m in methods}
        higher = [paired(values["k8"][i], values["k1"][i]).above for i in range(4)]
        ordered = []
        for i in range(4):
            means = [estimate(values[m][i]).mean for m in methods if m != "k16"]
            ordered.append(means == sorted(means))
        holds += [all(higher), all(ordered)]
        names = " < ".join(m[1:] for m in methods if m != "k16")
        reasons.append(
            f"{measure} ({rates}): k_opt = 8 above 1 at {sum(higher)} of 4 quarters, {names} at "
            f"{sum(ordered)}"
        )
        rows = [[label(m), *(tables.cell(estimate(v)) for v in values[m])] for m in methods]
        if not of_steps:
            before = tables.cell(estimate(problems.final("base", name)))
            rows.insert(0, ["before RL", before, "", "", ""])
        header = [f"{measure} ({rates})", *(f"step {at}" for at in quarters)]
        shown.append(tables.markdown(header, rows))
    return Finding(
        "b",
        "Higher k_opt keeps entropy, answer diversity and cumulative solve rate higher throughout.",
        "On fogged mazes, at the tuned rates and (added) with all k_opt at one, and for the solve "
        "rate on the hard set too (added), at each quarter of training: k_opt = 8 is "
        "higher than 1; and the means of k_opt 1, 2, 4, 8 are in this order.",
        holds,
        verdict(holds),
        "; ".join(reasons) + ".",
        paragraphs(shown),
    )


def annealing(results: Mapping[str, Any]) -> Finding:
    problems = Set(results["problems"]["fog"])
    methods = ["anneal_third", "anneal_two_thirds"]
    pairs = [(m, fixed) for m in methods for fixed in ("k1", "k2")]
    met, reasons = [], []
    for method in methods:
        above = [difference(problems, method, "k1", k).above for k in KS[1:]]
        loss = difference(problems, method, "k1", 1)
        met.append([*above, loss.low > -0.02])
        reasons.append(
            f"{label(method)}: higher than k = 1 at {sum(above)} of {len(above)} pass@k with "
            f"k > 1, pass@1 {tables.interval(loss)}"
        )
    some = any(any(above) for *above, _ in met)
    outcome = REPRODUCED if any(map(all, met)) else PARTLY if some else NOT
    return Finding(
        "c",
        "Annealing k from 8 to 1 beats k_opt = 1 on every pass@k with k > 1 and loses nothing on "
        "pass@1.",
        "On fogged mazes, for one of the two places of the change: higher than k_opt = 1 at "
        "pass@2, 4, 8 and 16, and the 95% interval of the difference at pass@1 stays above -0.02. "
        "Partly, if some pass@k is higher.",
        max(met, key=sum),
        outcome,
        "; ".join(reasons) + ".",
        paragraphs(
            [
                pass_table(problems, ["base", "k1", "k2", "k8", *methods]),
                difference_table(problems, pairs),
                *further_tables(problems, pairs),
            ]
        ),
    )


def hard_set(results: Mapping[str, Any]) -> Finding:
    problems, others = Set(results["problems"]["hard"]), ["k4", "k8"]
    measures = _of_hard(problems)
    holds, reasons = [], []
    for measure in list(measures)[:3]:
        of = measures[measure]
        above = [paired(of(m), of("k1")).above for m in others]
        holds.append(all(above))
        reasons.append(f"{measure}: k_opt 4, 8 higher than 1 at {sum(above)} of 2")
    shown = [f"After {problems.last_step} steps:", _hard_table(problems, others)]
    if "longer" in problems.data:
        longer = Set({**problems.data, **problems.data["longer"]})
        shown += [f"After {longer.data['steps']} steps:", _hard_table(longer, others)]
    return Finding(
        "d",
        "There is a hard set where k_opt = 1 stalls and k_opt 4 and 8 learn, pass@1 included.",
        f"On the hard set, after {problems.last_step} steps, k_opt 4 and 8 are higher than 1: in "
        "the share of problems that any sample has solved; (added, for the stall) in the share "
        "first solved in the last half of the steps; and in pass@1 on the problems trained on.",
        holds,
        verdict(holds),
        "; ".join(reasons) + ".",
        paragraphs(shown),
    )


def _of_hard(problems: Set) -> dict[str, Callable[[str], list[float]]]:
    """{measure: method -> a value for each seed}; a claim is read from the first three."""

    def solved(method: str) -> list[list[float]]:
        return problems.curve(method, "cumulative_solve_rate")[1]

    return {
        "solved so far": lambda m: [seed[-1] for seed in solved(m)],
        "solved first in the last half": lambda m: [
            seed[-1] - seed[len(seed) // 2 - 1] for seed in solved(m)
        ],
        "pass@1, in training": lambda m: _last(problems.curve(m, "pass_at_1")),
        "pass@16, in training": lambda m: _last(problems.curve(m, "pass_at_16")),
        "no gradient, of prompts": lambda m: _last(problems.curve(m, "dead_groups")),
        "entropy, nats a token": lambda m: _last(problems.curve(m, "entropy")),
        "pass@1, held out": lambda m: problems.pass_at(m, 1),
        "pass@16, held out": lambda m: problems.pass_at(m, 16),
    }


def _hard_table(problems: Set, others: Sequence[str]) -> str:
    rates, rows = problems.data["pass_rates"], []
    solved = [seed["solved"] for seed in rates]
    before = {
        "solved so far": f"{tables.cell(estimate(solved))} (1024 samples of each)",
        "pass@1, in training": tables.cell(estimate([seed["mean"] for seed in rates])),
        "pass@1, held out": tables.cell(estimate(problems.pass_at("base", 1))),
        "pass@16, held out": tables.cell(estimate(problems.pass_at("base", 16))),
    }
    for measure, of in _of_hard(problems).items():
        rows.append(
            [
                measure,
                before.get(measure, ""),
                *(tables.cell(estimate(of(m))) for m in ("k1", *others)),
                *(tables.interval(paired(of(m), of("k1"))) for m in others),
            ]
        )
    methods = [label(m) for m in ("k1", *others)]
    header = ["", "before RL", *methods, *(f"{m[1:]} less 1" for m in others)]
    return tables.markdown(header, rows)


def exploring(results: Mapping[str, Any]) -> Finding:
    problems = Set(results["problems"]["fog"])
    at_1 = difference(problems, "explore", "k1", 1)
    at_8 = difference(problems, "explore", "k8", 8)
    pairs = [("explore", m) for m in ("k1", "k2", "k8")]
    return Finding(
        "g",
        "pass@1, then pass@k, then pass@1 again (paper B's schedule) beats each alone.",
        "On fogged mazes: k = 1, 8, 1 is higher than k = 1 throughout at pass@1, and than k = 8 "
        "throughout at pass@8.",
        [at_1.above, at_8.above],
        verdict([at_1.above, at_8.above]),
        f"pass@1 {tables.interval(at_1)}; pass@8 {tables.interval(at_8)}.",
        paragraphs(
            [
                pass_table(problems, ["base", "k1", "k2", "k8", "explore"]),
                difference_table(problems, pairs),
                *further_tables(problems, pairs),
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
        [m in dominated for m in others],
        verdict([m in dominated for m in others]),
        f"higher somewhere and lower nowhere than: {listed(map(label, dominated)) or 'none'}; "
        f"lower somewhere and higher nowhere than: {listed(map(label, worse)) or 'none'}.",
        paragraphs(
            [
                pass_table(problems, ["base", "per_prompt", *others, "maxrl"]),
                difference_table(problems, [("per_prompt", m) for m in [*others, "maxrl"]]),
            ]
        ),
    )


def _values_at(
    curve: tuple[list[int], list[list[float]]], wanted: Sequence[int]
) -> list[list[float]]:
    """For each wanted step, the values of all seeds at the nearest one there is."""
    steps, seeds = curve
    nearest = [min(range(len(steps)), key=lambda i: abs(steps[i] - at)) for at in wanted]
    return [[seed[i] for seed in seeds] for i in nearest]


def _best(problems: Set, k: int) -> int:
    return max(KS, key=lambda opt: estimate(problems.pass_at(f"k{opt}", k)).mean)


def _last(curve: tuple[list[int], list[list[float]]]) -> list[float]:
    return [seed[-1] for seed in curve[1]]


def unseen(results: Mapping[str, Any], *methods: str) -> dict[str, Set]:
    """Those with reported runs of these methods, on problems that are not seen again and again."""
    sets = {name: Set(data) for name, data in results["problems"].items()}
    return {n: s for n, s in sets.items() if s.has(*methods) and not design.PROBLEMS[n].fixed}


def _no_gradient(problems: Set) -> str:
    names = ("dead_groups", "equal_groups")
    rows = [
        [label(m), *(tables.cell(estimate(_last(problems.curve(m, name)))) for name in names)]
        for m in PKPO
    ]
    return tables.markdown(["", "no gradient", "of these, all rewards equal"], rows)


def _optimum_table(optimum: Mapping[str, Any]) -> str:
    rows = {f"optimal for k = {k}": optimum["matrix"][str(k)] for k in KS}
    rows["for k = 1, ties by pass@2"] = optimum["mixed"]
    cells = [[name, *(tables.number(row[str(k)]) for k in KS)] for name, row in rows.items()]
    return tables.markdown(["", *(f"pass@{k}" for k in KS)], cells)
