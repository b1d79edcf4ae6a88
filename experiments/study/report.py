"""Results to a page: tables, verdicts and figures of every claim that the results serve."""

from __future__ import annotations

import json
import pathlib
import shlex
import statistics
from collections.abc import Mapping
from typing import Any

from experiments.study import claims, design, figures, files, page, tables
from experiments.study.finding import label
from experiments.study.results import Set, estimate


def write(results: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes results.json, figures/ and RESULTS.md; what people wrote in that page stays."""
    files.write(folder / "results.json", json.dumps(results) + "\n")
    for old in (folder / "figures").glob("*.png"):
        old.unlink()
    drawn = figures.draw(results, folder / "figures")
    page.write(folder / "RESULTS.md", blocks(results, drawn), "What came out of the study")


def blocks(results: Mapping[str, Any], drawn: list[str]) -> dict[str, str]:
    """{name: Markdown} of the page: a summary, the set-up, a claim each, rates and commands."""
    findings = claims.findings(results)
    summary = [
        [f.letter, f.claim, f"**{f.verdict}**", f"{sum(f.met)} of {len(f.met)}" if f.met else ""]
        for f in findings
    ]
    whole = results["tuned"] and set(results["problems"]) == set(design.FULL.methods)
    header = ["claim", "what it says", "here", "conditions met"]
    made = {
        "summary": tables.markdown(header, summary, words=3),
        "set-up": _setup(results),
    }
    for finding in findings:
        pictures = [
            f"![claim {finding.letter}](figures/{name})"
            for name in drawn
            if name.startswith(f"{finding.letter}_")
        ]
        made[f"claim {finding.letter}"] = "\n\n".join(
            [
                f"**{finding.verdict.capitalize()}.** {finding.reasons}",
                f"The rule: {finding.rule}" + ("" if whole else " (Of it, what was run.)"),
                *pictures,
                finding.shown,
            ]
        )
    if results["tuned"]:
        made["rates"] = _rates(results)
    made["commands"] = _commands(results)
    return made


def _setup(results: Mapping[str, Any]) -> str:
    rows, quantiles = [], ["5%", "25%", "50%", "75%", "95%", "within"]
    for name, data in results["problems"].items():
        problems = Set(data)
        spread = data["pass_rates"]
        rows.append(
            [
                design.PROBLEMS[name].title,
                str(design.PROBLEMS[name].steps),
                str(len(problems.pass_at("base", 1))),
                *(tables.cell(estimate(problems.pass_at("base", k))) for k in (1, 16)),
                *(tables.number(statistics.fmean(s[q] for s in spread)) for q in quantiles),
            ]
        )
    header = ["problems", "steps of RL", "seeds", "pass@1 before RL", "pass@16 before RL"]
    header += [*quantiles[:-1], ".1% to 60%"]
    return tables.markdown(header, rows) + f"\n\n{results['machine']}"


def _rates(results: Mapping[str, Any]) -> str:
    parts = []
    for name, data in results["problems"].items():
        problems, rows = Set(data), []
        for method in data["methods"]:
            chosen = data["methods"][method]["rate"]
            for rate, row in problems.grid(method).items():
                score = tables.number(row["score"])
                score = f"**{score}**" if chosen and rate == f"{chosen:g}" else score
                at = [tables.number(row[f"pass_at_{k}"]) for k in design.KS]
                rows.append([design.METHODS[method].label, rate, score, *at])
        if rows:
            header = ["", "rate", "mean", *(f"pass@{k}" for k in design.KS)]
            of = "in training" if design.PROBLEMS[name].fixed else "held out"
            title = f"{design.PROBLEMS[name].title}, {of}:"
            parts += [title, tables.markdown(header, rows)]
    return "\n\n".join(parts)


def _commands(results: Mapping[str, Any]) -> str:
    """Of one seed: the policy before RL, a run from there, and what the other methods' change."""
    parts = []
    for name, data in results["problems"].items():
        commands = {label(method): command for method, command in data["commands"].items()}
        base, first, *others = commands
        parts += [f"{design.PROBLEMS[name].title}, {base}, and then {first}:"]
        parts += ["    " + shlex.join(commands[m]) for m in (base, first)]
        rows = [[m, _changed(commands[first], commands[m])] for m in others]
        parts.append(tables.markdown(["", f"keys that are not those of {first}"], rows, words=2))
    return "\n\n".join(parts)


def _changed(before: list[str], after: list[str]) -> str:
    return ", ".join(
        f"`{word.removeprefix('--config.')}`"
        for word in after
        if word not in before and not word.startswith("--workdir=")
    )
