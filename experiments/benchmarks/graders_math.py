r"""Measures the grader of the task math on MATH-500 and GSM8K's test split, for `graders`."""

from __future__ import annotations

import json
import os
import pathlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from pkpo_jax.tasks import Grade, Math, math_answers
from pkpo_jax.tasks.boxed import boxed
from pkpo_jax.tasks.grading import Grader

# This matches a number, a name or a point of them. Such an answer is not taken for a copy of the
# question, although the question contains it as well.
_BARE = re.compile(
    r"(?:[-()\[\]{}\\$ ,;:.]|[0-9]|\\text|\\(?:[!,;%]|circ|pi|theta|left|right|infty)"
    r"(?![a-zA-Z])|\^\\circ|(?<![a-zA-Z])[a-zA-Z](?![a-zA-Z]))+"
)


def measure(math500: str, gsm8k: str) -> dict[str, Any]:
    """Returns counts over the files at two paths, and the answers graded per second.

    Returns:
      A dict with these keys, and those of `under_load`:
        golds, golds_accepted: reference answers of both files, and how many of them are accepted.
        solutions_agree: solutions of MATH-500 whose last box is accepted for their "answer".
        paraphrases, paraphrases_refused: reference answers in other spellings, and those of them
          that are refused, as pairs of texts.
        formulas, formulas_paid, formulas_paid_unseen: formulas of the problems that hold an
          operation; those of them that get a reward; and those that get one if the grader does not
          know the text of the problem.
        bare_paid: coincidences, such as a 2 in a problem whose answer is 2.
        pairs_equal: reference answers with different texts that are accepted for one another.
        answers_per_second: of the paraphrases, graded by one process.
    """
    problems = json.loads(pathlib.Path(math500).read_text())
    lines = pathlib.Path(gsm8k).read_text().splitlines()
    answers = [json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines]
    golds = [row["answer"] for row in problems] + answers
    other = [(gold, text) for gold in golds for text in paraphrases(gold)]
    started = time.perf_counter()
    refused = [pair for pair in other if not _pays(*pair)]
    taken = time.perf_counter() - started
    return {
        "golds": len(golds),
        "golds_accepted": sum(_pays(gold, gold) for gold in golds),
        "solutions_agree": sum(_pays(r["answer"], boxed(r["solution"]) or "") for r in problems),
        "paraphrases": len(other),
        "paraphrases_refused": refused,
        **copies(problems),
        "pairs_equal": list(equal_pairs(sorted({row["answer"] for row in problems}))),
        "answers_per_second": round(len(other) / taken),
        **under_load(problems, other),
    }


def under_load(
    problems: Sequence[dict[str, str]], paraphrases: Sequence[tuple[str, str]]
) -> dict[str, int]:
    """Returns how many verdicts differ between as many workers as cores and three times as many.

    The answers are the formulas of the problems, and the paraphrases of all reference answers.
    """
    tried = [(row, text) for row in problems for text in math_answers.formulas(row["problem"])] + [
        ({"answer": gold}, text) for gold, text in paraphrases
    ]
    texts = [[f"\\boxed{{{text}}}"] for _, text in tried]
    found = []
    for workers in (1, 3):
        with Grader(Math(), workers=workers * (os.cpu_count() or 1), timeout=60.0) as grader:
            found.append(grader.grade([row for row, _ in tried], texts))
    idle, busy = found
    same = np.isclose(idle.rewards, busy.rewards, equal_nan=True) & (idle.statuses == busy.statuses)
    return {"answers_under_load": len(tried), "different_verdicts": int((~same).sum())}


def copies(problems: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Grades each formula of a problem, and its sides and parts, as the problem's answer.

    A part that consists of numerals, single letters and brackets alone is bare; any other part is a
    formula.
    """
    found: dict[str, Any] = {"formulas": 0, "formulas_paid": [], "formulas_paid_unseen": []}
    bare = []
    for row in problems:
        for text in dict.fromkeys(math_answers.formulas(row["problem"])):
            if not text.strip():
                continue
            if _BARE.fullmatch(text) and "/" not in text:
                bare += [(row["answer"], text)] * _pays(row["answer"], text, row["problem"])
                continue
            found["formulas"] += 1
            for key, question in (
                ("formulas_paid", row["problem"]),
                ("formulas_paid_unseen", ""),
            ):
                found[key] += [(row["answer"], text)] * _pays(row["answer"], text, question)
    return {**found, "bare_paid": bare}


def paraphrases(gold: str) -> Iterator[str]:
    """Yields other spellings of an answer that models use."""
    yield f"$ {gold} $."
    if r"\frac" in gold:
        yield gold.replace(r"\frac", r"\dfrac")
    if "(" in gold and r"\left" not in gold and r"\begin" not in gold:
        yield (
            gold.replace("(", r"\left(")
            .replace(")", r"\right)")
            .replace("[", r"\left[")
            .replace("]", r"\right]")
        )
    if re.fullmatch(r"-?[0-9]+", gold):
        yield from (
            f"{gold}.0",
            f"x = {gold}",
            rf"\text{{{gold}}}",
            f"{int(gold):,}",
            f"{gold}^\\circ",
        )
    if match := re.fullmatch(r"(-?)\\[dt]?frac\s*\{?([0-9]+)\}?\s*\{?([0-9]+)\}?", gold):
        sign, over, under = match.groups()
        yield f"{sign}{over}/{under}"
        yield rf"\frac{{{sign}{over}}}{{{under}}}"
        if Fraction(1, int(under)).limit_denominator(10**6) == Fraction(str(1 / int(under))):
            yield str(int(sign + over) / int(under))
    if r"\text{" in gold:
        yield re.sub(r"\\text\{([^}]*)\}", r"\1", gold)
    for plain, symbol in ((r"\sqrt", "√"), (r"\pi", "π"), (r"^\circ", "°"), (r"\infty", "∞")):
        if plain in gold and (plain != r"\sqrt" or re.search(r"\\sqrt\{?[0-9]+\}?", gold)):
            text = gold.replace(plain, symbol)
            yield re.sub(r"√\{([0-9]+)\}", r"√\1", text)


def equal_pairs(golds: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yields pairs of different texts, of which the second is accepted where the first is right."""
    texts = list(golds)
    for gold in texts:
        for other in texts:
            if gold != other and _pays(gold, other):
                yield gold, other


def _pays(gold: str, answer: str, question: str = "") -> bool:
    grade = Math().grade({"answer": gold, "problem": question}, f"\\boxed{{{answer}}}")
    return (grade.reward if isinstance(grade, Grade) else grade) == 1
