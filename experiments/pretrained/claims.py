"""The questions of the study on a pretrained model, and the rules that decide them.

"Higher" means that the 95% interval of the difference, paired by seed, is above 0. With three seeds
it is 4.3 standard errors wide to each side, so that small effects are not seen. The rules were
written, and committed, before any reported run. For a, b and c the study on the tiny policy has a
similar rule, whose verdict the page shows too. The rules differ, so the verdicts do by more than
the policy:

a. there, k goes to 16, and pass@1 at k_opt = 8 is at most .05 below that at 1;
b. there, the evaluations are quarters of training, the means of k_opt 1, 2, 4, 8 are in this order,
   and the share of problems that are solved counts too;
c. there, k = 8 becomes 1 at once, at one of two places of which the better one counts, and "partly"
   needs a higher pass@k; here k falls gradually, and any condition that is met is enough for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from experiments.pretrained.design import DESIGN, KS
from experiments.study.base import Finding, judged
from experiments.study.measures import Set, all_sets, listed, number

PKPO = tuple(f"k{k}" for k in KS)
# The page shows these pairs of methods under the letter of a question.
COMPARED = {
    "a": [("k8", "k1"), ("k4", "k1"), ("k2", "k1")],
    "c": [("down", "k1")],
    "d": [("mixture", "k1"), ("mixture", "k8")],
}
PAIRS = (*itertools.chain(*COMPARED.values()), ("k1", "base"), ("k8", "base"))
# Question b compares these metrics at each evaluation, under the names that the page has for them.
DIVERSITY = {"entropy": "entropy, nats a token", "distinct_wrong": "wrong answers, distinct"}


def findings(results: Mapping[str, Any]) -> list[Finding]:
    """Returns the outcomes of the questions that these results are enough for."""
    sets = all_sets(results, DESIGN)
    asked = [diagonal(sets), exploration(sets), annealing(sets), mixture(sets)]
    made = [finding for finding in asked if finding.met]
    if len(results["seeds"]) < 2:
        return [f.untested() for f in made]
    return made


def diagonal(sets: Mapping[str, Set]) -> Finding:
    """Asks question a: whether each k is best at its own pass@k."""
    met, reasons = [], []
    for problems in (one for one in sets.values() if one.has(*PKPO)):
        best = [max(KS, key=lambda opt: problems.mean(f"k{opt}", k)) for k in KS]
        near = [abs(KS.index(opt) - i) <= 1 for i, opt in enumerate(best)]
        beats = [problems.difference(f"k{k}", "k1", k).above for k in (4, 8)]
        at_1 = [problems.mean(method, 1) for method in PKPO]
        met += [all(near), all(beats), at_1 == sorted(at_1)[::-1]]
        reasons.append(
            f"{problems.problems.title}: the best k_opt for k_eval {listed(KS)} is {listed(best)}; "
            f"k_opt = k_eval is higher than k_opt = 1 at {sum(beats)} of k_eval 4, 8; pass@1 for "
            f"k_opt {listed(KS)} is {listed(map(number, at_1))}"
        )
    return judged(
        "a",
        "The best k_opt for each k_eval is k_eval itself or its neighbour; pass@1 falls as k_opt "
        "grows.",
        "On each set of problems: for every k_eval the k_opt with the highest mean is at most one "
        "place from it in the list 1, 2, 4, 8; at k_eval 4 and 8 k_opt = k_eval is higher than "
        "k_opt = 1; and the mean of pass@1 does not rise with k_opt.",
        met,
        reasons,
    )


def exploration(sets: Mapping[str, Set]) -> Finding:
    """Asks question b: whether a larger k keeps entropy and diversity."""
    met, reasons = [], []
    for problems in (one for one in sets.values() if one.has("k1", "k8")):
        for name in DIVERSITY:
            steps, ours = problems.evaluated("k8", name)
            _, plain = problems.evaluated("k1", name)
            above = [
                problems.higher([seed[i] for seed in ours], [seed[i] for seed in plain])
                for i in range(1, len(steps))
            ]
            met.append(all(above))
            reasons.append(
                f"{problems.problems.title}, {DIVERSITY[name]}: k_opt = 8 above 1 at "
                f"{sum(above)} of {len(above)} evaluations"
            )
    return judged(
        "b",
        "A higher k_opt keeps entropy and the diversity of wrong answers higher throughout.",
        "On each set of problems, at each evaluation after the first: k_opt = 8 is higher than 1 "
        "in entropy, and in the share of wrong answers that are distinct.",
        met,
        reasons,
    )


def annealing(sets: Mapping[str, Set]) -> Finding:
    """Asks question c: whether annealing k from 8 to 1 costs no pass@1."""
    met, reasons = [], []
    for problems in (one for one in sets.values() if one.has("down", "k1")):
        above = [problems.difference("down", "k1", k).above for k in (2, 4, 8, 16)]
        loss = problems.difference("down", "k1", 1)
        met += [*above, loss.low > -0.02]
        reasons.append(
            f"{problems.problems.title}: higher than k = 1 at {sum(above)} of {len(above)} pass@k "
            f"with k > 1, pass@1 {loss.interval()}"
        )
    return judged(
        "c",
        "Annealing k from 8 to 1 beats k_opt = 1 on every pass@k with k > 1 and loses nothing on "
        "pass@1.",
        "On each set of problems: higher than k_opt = 1 at pass@2, 4, 8 and 16, and the 95% "
        "interval of the difference at pass@1 stays above -0.02.",
        met,
        reasons,
    )


def mixture(sets: Mapping[str, Set]) -> Finding:
    """Asks question d: whether the mean of several k costs little at any of them."""
    met, reasons = [], []
    for problems in (one for one in sets.values() if one.has("mixture", *PKPO)):
        behind = [k for k in KS if problems.difference("mixture", f"k{k}", k).below]
        met.append(not behind)
        reasons.append(
            f"{problems.problems.title}: lower than k_opt = k_eval at pass@{listed(behind)}"
            if behind
            else f"{problems.problems.title}: nowhere lower than k_opt = k_eval"
        )
    return judged(
        "d",
        "The mean of pass@1 to pass@8 is as good an objective at each k as that k itself.",
        "On each set of problems: at no k_eval of 1, 2, 4, 8 is the mixture lower than "
        "k_opt = k_eval, by the interval of the difference.",
        met,
        reasons,
    )
