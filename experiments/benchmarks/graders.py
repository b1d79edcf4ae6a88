"""Measures what the graders of mathematics and of programs accept, refuse and cost on real data.

python -m experiments.benchmarks.graders --math500=math500.json --gsm8k=gsm8k_test.jsonl \
    --mbpp=mbpp.jsonl

For mathematics, it counts the reference answers that are accepted, as they stand and in other
spellings, and the formulas of a question that are accepted as its answer. For programs, it counts
the reference programs that pass in a dozen layouts of a response, and measures the reward of a
constant that is copied from the shown test. For both, it measures answers per second, and counts
the verdicts that differ between as many workers as cores and three times as many; there should be
none. This takes a few minutes on two cores.

The files are MATH-500 as a list of objects with "problem", "solution" and "answer"
(huggingface.co/datasets/HuggingFaceH4/MATH-500, MIT), GSM8K's test split as lines with "question"
and "answer" (github.com/openai/grade-school-math, MIT), and MBPP
(github.com/google-research/google-research/tree/master/mbpp, CC BY 4.0). A part whose files are not
given is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table
from absl import app, flags, logging

import experiments
from experiments.benchmarks import graders_code, graders_math

_MATH500 = flags.DEFINE_string("math500", "", "The path of MATH-500, with --gsm8k.")
_GSM8K = flags.DEFINE_string("gsm8k", "", "The path of GSM8K's test split, with --math500.")
_MBPP = flags.DEFINE_string("mbpp", "", "The path of mbpp.jsonl.")


def show(console: rich.console.Console, title: str, counts: Mapping[str, Any]) -> None:
    """Prints counts as a table; where a value is a list of pairs, also the pairs below it."""
    table = rich.table.Table(title, "")
    for name, value in counts.items():
        shown = len(value) if isinstance(value, list) else value
        table.add_row(name, f"{shown:.3g}" if isinstance(shown, float) else str(shown))
    console.print(table)
    for name, value in counts.items():
        for pair in value if isinstance(value, list) else ():
            console.print(f"  {name}:", *map(repr, pair), highlight=False, markup=False)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    if bool(_MATH500.value) != bool(_GSM8K.value) or not (_MATH500.value or _MBPP.value):
        sys.exit("error: give the paths of the files as --math500 and --gsm8k, as --mbpp, or both.")
    console = rich.console.Console(width=110)
    if _MATH500.value:
        show(console, "MATH-500 and GSM8K", graders_math.measure(_MATH500.value, _GSM8K.value))
    if _MBPP.value:
        for title, counts in graders_code.measure(_MBPP.value).items():
            show(console, title, counts)
    console.print(experiments.machine(), highlight=False)


if __name__ == "__main__":
    app.run(main)
