"""What a claim comes to, and the tables and words that claims share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from experiments.study import design, tables
from experiments.study.results import Estimate, Set, estimate, paired

KS, PKPO = design.KS, [f"k{k}" for k in design.KS]
REPRODUCED, PARTLY, NOT = "reproduced", "partly reproduced", "not reproduced"
# Of one seed there is no interval.
UNTESTED = "not tested: one seed"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A claim, the rule for it, which of the rule's conditions were met, how it came out, and
    Markdown that shows it."""

    letter: str
    claim: str
    rule: str
    met: Sequence[bool]
    verdict: str
    reasons: str
    shown: str


def verdict(holds: Sequence[bool]) -> str:
    return REPRODUCED if all(holds) else PARTLY if any(holds) else NOT


def label(method: str) -> str:
    return "before RL" if method == "base" else design.METHODS[method].label


def pass_table(problems: Set, methods: Sequence[str]) -> str:
    """A table of held-out pass@k: a row a method, mean and standard error over seeds."""
    rows = {}
    for method in methods:
        rows[label(method)] = [estimate(problems.pass_at(method, k)) for k in KS]
    best = [max(row[i].mean for row in rows.values()) for i in range(len(KS))]
    cells = [
        [name, *(tables.cell(e, bold=e.mean == best[i]) for i, e in enumerate(row))]
        for name, row in rows.items()
    ]
    return tables.markdown(["", *(f"pass@{k}" for k in KS)], cells)


def difference_table(problems: Set, pairs: Sequence[tuple[str, str]]) -> str:
    """A table of paired differences of pass@k, with 95% intervals."""
    cells = [
        [
            f"{label(a)} less {label(b)}",
            *(tables.interval(paired(problems.pass_at(a, k), problems.pass_at(b, k))) for k in KS),
        ]
        for a, b in pairs
    ]
    return tables.markdown(["", *(f"pass@{k}" for k in KS)], cells)


def further_tables(problems: Set, pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Of those pairs whose methods were trained at one rate too, or for longer: what came of it."""
    runs = {
        f"All with a learning rate of {rate}:": Set(data)
        for rate, data in problems.data.get("at_rates", {}).items()
    }
    if "longer" in problems.data:
        longer = Set(problems.data["longer"])
        runs[f"After {longer.data['steps']} steps in place of {problems.last_step}:"] = longer
    shown = []
    for title, of in runs.items():
        served = [pair for pair in pairs if of.has(*pair)]
        methods = [m for m in of.data["methods"] if any(m in pair for pair in served)]
        if served:
            shown += [title, pass_table(of, ["base", *methods]), difference_table(of, served)]
    return shown


def difference(problems: Set, a: str, b: str, k: int) -> Estimate:
    """Of held-out pass@k, paired by seed."""
    return paired(problems.pass_at(a, k), problems.pass_at(b, k))


def listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def paragraphs(parts: Sequence[str]) -> str:
    return "\n\n".join(parts)
