"""The page of a study: RESULTS.md among paragraphs that people write, and TABLES.md."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from experiments.study import results, tables
from experiments.study.base import Study
from experiments.study.measures import Set, all_sets
from pkpo_jax.training import files

_BLOCK = "<!-- {name}: made by a command -->\n\n{text}\n\n<!-- end of {name} -->"
_NAME = re.compile(r"<!-- (.*?): made by a command -->")


def write(study: Study, found: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes results.json, and the page from it."""
    results.save(folder / "results.json", found)
    render(study, folder)


def render(study: Study, folder: pathlib.Path) -> None:
    """Makes figures/, TABLES.md and RESULTS.md from the folder's results.json alone.

    What people wrote in RESULTS.md stays.

    Raises:
      FormatError: the folder has no results.json that this version can read.
    """
    found = results.load(folder / "results.json")
    # The folder may hold plots that no study makes; these are not named after a claim.
    for old in (folder / "figures").glob("?_*.png"):
        old.unlink()
    drawn = study.draw(found, folder / "figures")
    page = folder / "RESULTS.md"
    text = page.read_text() if page.exists() else f"# Results of {study.title}\n"
    files.replace(page, update(text, blocks(study, found, drawn)))
    files.replace(folder / "TABLES.md", all_tables(study, found))


def update(page: str, made: Mapping[str, str]) -> str:
    """Returns the page with every block of these names replaced, or added at its end.

    Blocks of other names are emptied, because these results do not have them.

    >>> page = update("Before.", {"a": "one"})
    >>> update(page, {"a": "two"}) == page.replace("one", "two")
    True
    """
    others = [name for name in _NAME.findall(page) if name not in made]
    for name, text in {**dict.fromkeys(others, "Not run."), **made}.items():
        block = _BLOCK.format(name=name, text=text.strip())
        there = re.compile(
            re.escape(f"<!-- {name}:") + ".*?" + re.escape(f"<!-- end of {name} -->"), re.DOTALL
        )
        if there.search(page):
            page = there.sub(lambda _, block=block: block, page)
        else:
            page = f"{page.rstrip()}\n\n{block}\n"
    return page


def blocks(study: Study, found: Mapping[str, Any], drawn: list[str]) -> dict[str, str]:
    """Returns {name: Markdown} of the blocks of RESULTS.md.

    Args:
      study: what was run, and its rules.
      found: the results.
      drawn: names of the plots, each of which starts with the letter of its claim.
    """
    findings = study.findings(found)
    summary = [
        [f.letter, f.claim, f"**{f.verdict}**", f"{sum(f.met)} of {len(f.met)}" if f.met else ""]
        for f in findings
    ]
    header = ["claim", "what it says", "here", "conditions met"]
    made = {
        "summary": tables.markdown(header, summary, words=3),
        "set-up": "\n\n".join(
            [
                tables.set_up(all_sets(found, study.design)),
                found["machine"],
                *_missing(study, found),
            ]
        ),
    }
    whole = found["tuned"] and set(found["problems"]) == set(study.design.full.methods)
    for finding in findings:
        parts = [
            f"**{finding.verdict.capitalize()}.** {finding.reasons}",
            f"The rule: {finding.rule}" + ("" if whole else " (Only a part of the study was run.)"),
            *(
                f"![claim {finding.letter}](figures/{name})"
                for name in drawn
                if name[0] == finding.letter
            ),
            *study.tables(finding.letter, found),
        ]
        made[f"claim {finding.letter}"] = "\n\n".join(parts)
    return made


def _missing(study: Study, found: Mapping[str, Any]) -> list[str]:
    """Says which runs of the whole study these results lack."""
    full, design, sets = study.design.full, study.design, all_sets(found, study.design)
    lacking = []
    for name, methods in full.methods.items():
        reported = sets[name].methods if name in sets else []
        # Only one of several coefficients is reported.
        less = design.alternatives if set(design.alternatives) & set(reported) else ()
        absent = [design.label(m) for m in methods if m not in (*reported, *less)]
        if absent:
            which = ", ".join(absent) if reported else "everything"
            lacking.append(f"- {design.problems[name].title}: {which}")
    cells, done = len(full.cells(full.seeds)), len(found["seeds"]) * len(found.get("draws", [0]))
    if done < cells:
        lacking.append(f"- of {cells} runs of each method: {cells - done}")
    if not found["tuned"]:
        lacking.append("- the tuning of rates")
    return ["Not run:\n\n" + "\n".join(lacking)] if lacking else []


# -- TABLES.md -------------------------------------------------------------------------------------


def all_tables(study: Study, found: Mapping[str, Any]) -> str:
    """Returns TABLES.md: the numbers of all runs and measurements."""
    sets = all_sets(found, study.design)
    parts = [
        f"# Tables of {study.title}",
        "A command makes this page from `results.json`; [RESULTS.md](RESULTS.md) says what it "
        "means. Cells are mean ± standard error over seeds, and the best mean at each k is bold. "
        "Differences are of held-out pass@k, paired by seed, with 95% intervals, bold where 0 is "
        "outside. One seed has no error and no interval.",
    ]
    for problems in sets.values():
        parts.append(f"## {problems.problems.title}")
        for title, runs in _groups(problems).items():
            parts += [f"### {title}", tables.pass_at(runs)]
            parts += [tables.differences(runs, study.pairs), tables.training(runs)]
    parts += study.measurements(found)
    if found["tuned"]:
        parts.append("## Learning rates")
        for problems in sets.values():
            of = "in training" if problems.problems.fixed else "held out"
            parts += [f"{problems.problems.title}, {of}:", tables.rates(problems)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _groups(problems: Set) -> dict[str, Set]:
    """Returns {title: runs} of the reported runs on a set of problems."""
    groups = {f"{problems.last_step} steps at the reported rates": problems}
    rates: list[str] = sorted(problems.data.get("at_rates", {}), key=float)
    for rate in rates:
        groups[f"All with a learning rate of {rate}"] = problems.at_rate(rate)
    if longer := problems.longer:
        groups[f"{longer.last_step} steps in place of {problems.last_step}"] = longer
    return groups
