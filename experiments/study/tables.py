"""Markdown tables of any study."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from experiments.study.base import KS
from experiments.study.measures import Set, estimate, number

PASS_AT = ["", *(f"pass@{k}" for k in KS)]


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Returns a table; all columns but the first `words` are right-aligned."""
    lines = [header, ["---"] * words + ["---:"] * (len(header) - words), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pass_at(problems: Set) -> str:
    """Returns held-out pass@k before RL and after training with each method."""
    rows = {m: [estimate(problems.pass_at(m, k)) for k in KS] for m in ["base", *problems.methods]}
    best = [max(row[i].mean for row in rows.values()) for i in range(len(KS))]
    cells = [
        [
            problems.design.label(m),
            *(e.cell(bold=e.mean == top) for e, top in zip(row, best, strict=True)),
        ]
        for m, row in rows.items()
    ]
    return markdown(PASS_AT, cells)


def differences(problems: Set, pairs: Iterable[tuple[str, str]]) -> str:
    """Returns differences of held-out pass@k for the pairs of methods that both were trained.

    One of a pair may be the policy before RL ("base").
    """
    named = problems.design.label
    rows = [
        [f"{named(a)} less {named(b)}", *(problems.difference(a, b, k).interval() for k in KS)]
        for a, b in pairs
        if problems.has(*{a, b} - {"base"})
    ]
    return markdown(PASS_AT, rows) if rows else ""


def training(problems: Set) -> str:
    """Returns training metrics over the last steps of each method."""
    names = {
        "dead_groups": "no gradient, of prompts",
        "equal_groups": "all rewards equal, of prompts",
        "entropy": "entropy, nats a token",
        "pass_at_1": "pass@1",
        "pass_at_16": "pass@16",
    }
    rows = [
        [problems.design.label(m), *(estimate(problems.last(m, name)).cell() for name in names)]
        for m in problems.methods
    ]
    return markdown(["last steps of training", *names.values()], rows)


def set_up(problems: Mapping[str, Set]) -> str:
    """Returns the sets of problems and how hard they are before RL."""
    shares, rows = {}, []
    if any("pass_rates" in one.data for one in problems.values()):
        shares = {q: q for q in ("5%", "25%", "50%", "75%", "95%")} | {"within": ".1% to 60%"}
    for one in problems.values():
        quantiles = one.data.get("pass_rates")
        before = [estimate(one.pass_at("base", k)).cell() for k in (1, 16)]
        spread = [number(statistics.fmean(quantiles[q])) if quantiles else "" for q in shares]
        rows.append([one.problems.title, str(one.last_step), *before, *spread])
    header = ["problems", "steps of RL", "pass@1 before RL", "pass@16 before RL"]
    return markdown([*header, *shares.values()], rows)


def rates(problems: Set) -> str:
    """Returns pass@k of every rate that was tuned over; the reported rate is bold."""
    rows = []
    for method in problems.design.methods:
        data = problems.data["methods"].get(method, {})
        for rate, row in sorted(data.get("grid", {}).items(), key=lambda item: float(item[0])):
            score = number(row["score"])
            chosen = rate == f"{data.get('rate', 0):g}"
            at = [number(row[f"pass_at_{k}"]) for k in KS]
            rows.append(
                [problems.design.label(method), rate, f"**{score}**" if chosen else score, *at]
            )
    return markdown(["", "rate", "mean", *PASS_AT[1:]], rows)
