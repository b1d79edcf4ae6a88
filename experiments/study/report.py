"""The page of the study: RESULTS.md among paragraphs that people write, and TABLES.md."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from experiments.study import claims, design, figures, results, tables
from experiments.study.measures import Set, all_sets, quarters
from pkpo_jax.training import files

_BLOCK = "<!-- {name}: made by a command -->\n\n{text}\n\n<!-- end of {name} -->"
_NAME = re.compile(r"<!-- (.*?): made by a command -->")


def write(found: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes results.json, and the page from it."""
    results.save(folder / "results.json", found)
    render(folder)


def render(folder: pathlib.Path) -> None:
    """Makes figures/, TABLES.md and RESULTS.md from the folder's results.json alone.

    What people wrote in RESULTS.md stays.

    Raises:
      FormatError: the folder has no results.json that this version can read.
    """
    found = results.load(folder / "results.json")
    for old in (folder / "figures").glob("*.png"):
        old.unlink()
    drawn = figures.draw(found, folder / "figures")
    page = folder / "RESULTS.md"
    text = page.read_text() if page.exists() else "# Results of the study\n"
    files.replace(page, update(text, blocks(found, drawn)))
    files.replace(folder / "TABLES.md", all_tables(found))


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


def blocks(found: Mapping[str, Any], drawn: list[str]) -> dict[str, str]:
    """Returns {name: Markdown} of the blocks of RESULTS.md.

    Args:
      found: the results.
      drawn: names of the plots, each of which starts with the letter of its claim.
    """
    findings = claims.findings(found)
    summary = [
        [f.letter, f.claim, f"**{f.verdict}**", f"{sum(f.met)} of {len(f.met)}" if f.met else ""]
        for f in findings
    ]
    header = ["claim", "what it says", "here", "conditions met"]
    made = {
        "summary": tables.markdown(header, summary, words=3),
        "set-up": f"{tables.set_up(all_sets(found))}\n\n{found['machine']}",
    }
    whole = found["tuned"] and set(found["problems"]) == set(design.FULL.methods)
    for finding in findings:
        parts = [
            f"**{finding.verdict.capitalize()}.** {finding.reasons}",
            f"The rule: {finding.rule}" + ("" if whole else " (Only a part of it was run.)"),
            *(
                f"![claim {finding.letter}](figures/{name})"
                for name in drawn
                if name[0] == finding.letter
            ),
            *_tables_of_claim(finding.letter, found),
        ]
        made[f"claim {finding.letter}"] = "\n\n".join(parts)
    return made


def _tables_of_claim(letter: str, found: Mapping[str, Any]) -> list[str]:
    sets = all_sets(found)
    if letter in "cegh":
        return [tables.differences(sets["fog"], claims.COMPARED[letter])]
    if letter == "d":
        longer = sets["hard"].longer
        return [tables.hard(sets["hard"]), *([tables.hard(longer)] if longer else [])]
    if letter == "f":
        return [
            tables.methods(sets["fog"]),
            "The time of a step is the median over steps, for the fastest seed, because runs "
            "shared the machine with others. The five k of PKPO are one program and take "
            f"{tables.time_of_k(sets['fog'])}, so smaller differences are noise. The last two "
            "columns show after how many steps (over seeds) and seconds of training the pass@k of "
            "the training batches, over 10 steps, first reaches a level, or how many seeds reach "
            "it. Training problems are not repeated, so this is pass@k on unseen problems.",
        ]
    return [tables.cost(found["cost"])] if letter == "i" else []


# -- TABLES.md -------------------------------------------------------------------------------------


def all_tables(found: Mapping[str, Any]) -> str:
    """Returns TABLES.md: the numbers of all runs and measurements."""
    letters = [finding.letter for finding in claims.findings(found)]
    parts = [
        "# Tables of the study",
        "A command makes this page from `results.json`; [RESULTS.md](RESULTS.md) says what it "
        "means. Cells are mean ± standard error over seeds. Differences are of held-out pass@k, "
        "paired by seed, with 95% intervals, bold where 0 is outside.",
    ]
    for name, problems in all_sets(found).items():
        parts.append(f"## {design.PROBLEMS[name].title}")
        for title, runs in _groups(problems).items():
            parts += [f"### {title}", tables.pass_at(runs)]
            parts += [tables.differences(runs, claims.PAIRS), tables.training(runs)]
    if "b" in letters:
        parts += ["## Exploration", *map(tables.quarters, quarters(found))]
    for name, optimum in found.get("optimum", {}).items():
        parts += [f"## The exact optimum on {design.PROBLEMS[name].title}", tables.optimum(optimum)]
    if "variance" in found:
        parts.append("## Variance of one gradient estimate")
        parts += [tables.variance(p, found["variance"][p]) for p in design.POLICIES]
    if found["tuned"]:
        parts.append("## Learning rates")
        for name, problems in all_sets(found).items():
            of = "in training" if design.PROBLEMS[name].fixed else "held out"
            parts += [f"{design.PROBLEMS[name].title}, {of}:", tables.rates(problems)]
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
