"""The referee's questions, each as a claim that can fail, with the rule for calling it true.

"Higher" means that the 95% interval of the difference, paired by run, is above 0, and that the mean
difference is above 0 on each draw of problems. Not to be higher is not to be equal, and a verdict
needs five runs of a method at least. The rules were written, and committed, before any run of the
referee was read; the rules of the study on similar problems, and its results, were known.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.referee.design import BONUSES, DESIGN, DISTINCT, LOSSES, PKPO
from experiments.study.base import KS, Finding, judged
from experiments.study.measures import Set, all_sets, listed, number

WORDS = YES, IN_PART, NO = "yes", "in part", "no"
# With fewer runs of a method, intervals are so wide that hardly anything differs: a method would
# lead, or keep up, for want of evidence.
FEWEST = 5
UNTESTED = f"not tested: fewer than {FEWEST} runs of a method"
# Methods for more than pass@1, of which claim b asks how they come by different answers.
DIVERSE = (
    *("k2", "k4", "k8", "k16", "mixture", "down", "up", "pace_up", "maxrl", "passk", "poly_epo"),
    *("distinct", "edas", "rarity", "sage", *BONUSES),
)
FAMILIES = {"PKPO": ("down", "up"), "PACEvolve++": ("pace_down", "pace_up")}
# The conditions under which k = 1 may collapse: (title, k = 1, k = 4).
COLLAPSES = (
    ("Adam", "k1", "k4"),
    ("SGD", "sgd_k1", "sgd_k4"),
    ("four clipped epochs a batch", "clipped_k1", "clipped_k4"),
)
# A step may take this many times the time of RLOO's.
SLOWER = 1.1
PAIRS = (
    *((method, "k1") for method in ("k4", "mixture", "maxrl", "grpo")),
    *FAMILIES.values(),
    *((method, "grpo") for method in ("edas", "rarity", "sage", "resrl", "ppo", "cispo", "gspo")),
    *((method, "k4") for method in ("edas", "passk", "poly_epo", "mixture", "distinct")),
)


def findings(results: Mapping[str, Any]) -> list[Finding]:
    """Returns the outcomes of the questions that these results are enough for."""
    sets = all_sets(results, DESIGN)
    met = {name: one for name, one in sets.items() if not one.problems.fixed}
    found = [
        wins(met),
        diversity(met),
        direction(met),
        edas(met),
        collapse(sets),
        other_losses(met),
        seconds(met),
    ]
    made = [finding for finding in found if finding.met]
    if len(results["seeds"]) * len(results.get("draws", [0])) < FEWEST:
        return [dataclasses.replace(f, verdict=UNTESTED, met=()) for f in made]
    return made


def leaders(problems: Set, k: int) -> list[str]:
    """Returns the methods that the one with the highest mean of pass@k is not higher than."""
    best = max(problems.methods, key=lambda m: problems.mean(m, k))
    top, others = problems.pass_at(best, k), len(problems.methods) - 1
    return [
        m
        for m in problems.methods
        if m == best or not problems.higher(top, problems.pass_at(m, k), others)
    ]


def dominates(problems: Set, a: str, b: str) -> bool:
    """Returns whether method a is higher than b at some pass@k, and b higher than a at none."""
    pairs = [(problems.pass_at(a, k), problems.pass_at(b, k)) for k in KS]
    better = any(problems.higher(x, y) for x, y in pairs)
    return better and not any(problems.higher(y, x) for x, y in pairs)


def wins(sets: Mapping[str, Set]) -> Finding:
    """Asks question a: which method wins at each k."""
    met, reasons = [], []
    for problems in (one for one in sets.values() if one.has("k1", "k4", "k8")):
        own = [k for k in KS if problems.has(f"k{k}")]
        leads = [f"k{k}" in leaders(problems, k) for k in own]
        met += leads
        reasons.append(
            f"{problems.problems.title}: PKPO with k_opt = k_eval is among them at {sum(leads)} "
            f"of {len(own)}"
        )
    return judged(
        "a",
        "Which wins at each k? At each pass@k, PKPO trained for this k is among the leaders.",
        "The leaders are the methods that the one with the highest mean is not higher than, with "
        "intervals for as many comparisons as there are methods (Bonferroni). Yes, if PKPO with "
        "k_opt = k_eval leads at every k on every set of problems; in part, if at some.",
        met,
        reasons,
        WORDS,
    )


def at_equal_pass_at_1(problems: Set, method: str) -> list[float]:
    """Returns, for each run of a method, the distinct right answers of RLOO at its pass@1.

    RLOO's evaluations during training are joined by lines. Where a method's pass@1 is above all of
    them, the evaluation with the highest is taken, and where it is below all, the first.
    """
    _, passed = problems.evaluated("k1", "pass_at_1")
    _, distinct = problems.evaluated("k1", f"distinct_correct_{DISTINCT}")
    found = []
    for value, xs, ys in zip(problems.pass_at(method, 1), passed, distinct, strict=True):
        until = int(np.argmax(xs)) + 1
        # Up to its peak pass@1 rises but for noise, which the running maximum takes out.
        rising = np.maximum.accumulate(xs[:until])
        found.append(float(np.interp(value, rising, ys[:until])))
    return found


def diversity(sets: Mapping[str, Set]) -> Finding:
    """Asks question b: whether diversity is bought with pass@1, or found."""
    met, found, bought, neither = [], [], [], []
    problems = sets.get("modes")
    if problems and problems.has("k1"):
        name = f"distinct_correct_{DISTINCT}"
        for method in (m for m in DIVERSE if problems.has(m)):
            ours, label = problems.final(method, name), problems.design.label(method)
            met.append(problems.higher(ours, at_equal_pass_at_1(problems, method)))
            more = problems.higher(ours, problems.final("k1", name))
            (found if met[-1] else bought if more else neither).append(label)
    return judged(
        "b",
        f"Is diversity bought or found? A method for pass@k gives more distinct right answers "
        f"among {DISTINCT} samples than RLOO does when its pass@1 is the same.",
        "On the mazes with known modes, for each run: RLOO at equal pass@1 is its training, "
        "stopped earlier, between two evaluations (at its highest pass@1, if the method's is "
        "higher). Found, if the method is higher than that; bought, if it is only higher than "
        "RLOO at the end of training. Yes, if all methods have found it; in part, if some.",
        met,
        [
            f"found: {listed(found) or 'none'}",
            f"bought: {listed(bought) or 'none'}",
            f"neither: {listed(neither) or 'none'}",
        ],
        WORDS,
    )


def direction(sets: Mapping[str, Set]) -> Finding:
    """Asks question c: whether k should be annealed down or up."""
    met, reasons = [], []
    for problems in sets.values():
        for family, (down, up) in FAMILIES.items():
            if not problems.has(down, up):
                continue
            met.append(dominates(problems, down, up))
            at = {"down": _higher_at(problems, down, up), "up": _higher_at(problems, up, down)}
            text = ", ".join(f"{way} higher at pass@{listed(ks)}" for way, ks in at.items() if ks)
            reasons.append(f"{problems.problems.title}, {family}: {text or 'no difference'}")
        fixed = [m for m in (*PKPO, "mixture") if problems.has(m, "down", "up")]
        better = {
            way: [problems.design.label(m) for m in fixed if dominates(problems, m, way)]
            for way in ("down", "up")
        }
        reasons += [
            f"{problems.problems.title}: better than k {way}, without a schedule: {listed(some)}"
            for way, some in better.items()
            if some
        ]
    return judged(
        "c",
        "k up or k down? To anneal k from 8 down to 1 (PKPO) is better than from 1 up to 8 "
        "(PACEvolve++).",
        "On each set of problems, with the estimator of either paper: down is higher than up at "
        "some pass@k, and up is higher than down at none. Yes, if everywhere; in part, if "
        "somewhere.",
        met,
        reasons,
        WORDS,
    )


def _higher_at(problems: Set, a: str, b: str) -> list[int]:
    return [k for k in KS if problems.higher(problems.pass_at(a, k), problems.pass_at(b, k))]


def edas(sets: Mapping[str, Set]) -> Finding:
    """Asks question d: whether EDAS helps where its authors found PKPO behind GRPO."""
    met, reasons = [], []
    for problems in (one for one in sets.values() if one.has("edas", "grpo", "k4")):
        pairs = (("edas", "grpo", 1), ("edas", "grpo", 16), ("grpo", "k4", 1), ("edas", "k4", 4))
        for a, b, k in pairs:
            met.append(problems.higher(problems.pass_at(a, k), problems.pass_at(b, k)))
            names = f"{problems.design.label(a)} less {problems.design.label(b)}"
            difference = problems.difference(a, b, k).interval()
            reasons.append(f"{problems.problems.title}, pass@{k}, {names}: {difference}")
    return judged(
        "d",
        "Does EDAS help? Its authors report a mean accuracy of 38.4 for GRPO with EDAS, 36.8 for "
        "GRPO and 36.6 for PKPO (their k is not known).",
        "On each set of problems: EDAS is higher than GRPO at pass@1 (their measure) and at "
        "pass@16; GRPO is higher than PKPO k = 4 at pass@1; and EDAS is higher than PKPO k = 4 at "
        "pass@4. Yes, if all hold; in part, if some do.",
        met,
        reasons,
        WORDS,
    )


def collapse(sets: Mapping[str, Set]) -> Finding:
    """Asks question e: under which conditions k = 1 collapses as in paper A."""
    met, reasons = [], []
    hard = sets.get("hard")
    cases = [(*case, hard) for case in COLLAPSES]
    if hard and hard.longer:
        longer = hard.longer
        cases.append((f"Adam, {longer.last_step} steps", "k1", "k4", longer))
    for title, one, four, problems in cases:
        if not problems or not problems.has(one, four):
            continue
        ones, fours = ([seed[-1] for seed in _solved(problems, m)] for m in (one, four))
        four_at_1, one_at_1 = (problems.last(m, "pass_at_1") for m in (four, one))
        less = statistics.fmean(ones) < statistics.fmean(fours) / 2
        more = problems.higher(fours, ones) and problems.higher(four_at_1, one_at_1)
        met.append(less and more)
        at_1 = [number(statistics.fmean(values)) for values in (four_at_1, one_at_1)]
        solved = [number(statistics.fmean(values)) for values in (fours, ones)]
        reasons.append(
            f"{title}: solved {solved[0]} with k = 4 and {solved[1]} with k = 1, "
            f"pass@1 in training {at_1[0]} and {at_1[1]}"
        )
    return judged(
        "e",
        "Why does the k = 1 of paper A collapse, and ours does not? With SGD, with several clipped "
        "epochs, or with more steps, k = 1 collapses here too.",
        "On the hard mazes, for Adam and each change of it: k = 1 collapses if it solves less than "
        "half of the problems that k = 4 solves (of a paper's 12% and 84%), and k = 4 is higher "
        "both in this and in pass@1 on the training problems. Yes, if under each condition; in "
        "part, if under some.",
        met,
        reasons,
        WORDS,
    )


def _solved(problems: Set, method: str) -> Sequence[Sequence[float]]:
    return problems.curve(method, "cumulative_solve_rate")[1]


def other_losses(sets: Mapping[str, Set]) -> Finding:
    """Asks question f: whether another loss or a bonus does what an estimator of pass@k does."""
    met, reasons = [], []
    for problems in sets.values():
        of_k = [m for m in (*PKPO, "maxrl") if problems.has(m)]
        tested = [m for m in LOSSES if problems.has(m)]
        behind = {m: [b for b in of_k if dominates(problems, b, m)] for m in tested}
        met += [not better for better in behind.values()]
        if tested:
            named = [problems.design.label(m) for m, better in behind.items() if better]
            reasons.append(f"{problems.problems.title}: behind one: {listed(named) or 'none'}")
    return judged(
        "f",
        "Does another loss do it? With rewards for pass@1, SAGE, ResRL, clipped ratios and an "
        "entropy bonus keep up with estimators of pass@k.",
        "On each set of problems: no PKPO k and not MaxRL is higher than the loss at some pass@k "
        "and lower at none. Yes, if this holds for each loss; in part, if for some.",
        met,
        reasons,
        WORDS,
    )


def seconds(sets: Mapping[str, Set]) -> Finding:
    """Asks question g: what the methods cost in wall-clock."""
    met, reasons = [], []
    for problems in (one for one in sets.values() if one.has("k1")):
        base = problems.step_seconds("k1")
        once = [
            m for m in problems.methods if "train.epochs" not in problems.design.methods[m].keys
        ]
        ratios = {m: problems.step_seconds(m) / base for m in once}
        met += [ratio <= SLOWER for ratio in ratios.values()]
        slow = [f"{problems.design.label(m)} {r:.2f}" for m, r in ratios.items() if r > SLOWER]
        reasons.append(f"{problems.problems.title}: slower {listed(slow) or 'none'}")
    return judged(
        "g",
        "What does it cost? No method with one update a batch takes longer than RLOO.",
        f"The time of a step (its median, in the fastest run) is at most {SLOWER} times RLOO's on "
        "every set of problems. Yes, if this holds for each method; in part, if for some.",
        met,
        reasons,
        WORDS,
    )
