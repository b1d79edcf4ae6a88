"""Prints the table of hostile answers and their grades."""

from __future__ import annotations

import sys

import rich.console
import rich.table

import experiments
from pkpo_jax.tasks import Status
from tests.hostile_answers import run


def main() -> None:
    table = rich.table.Table("task", "attack", "answer", "reward", "status", "seconds")
    results = list(run.grade_one_by_one())
    for answer, reward, status, seconds in results:
        row = (
            answer.kind,
            answer.name + (" *" if answer.works else ""),
            ascii(answer.text[-30:])[1:-1][-30:],
            f"{reward:g}",
            Status(status).name,
            f"{seconds:.2f}",
        )
        table.add_row(*(rich.markup.escape(cell) for cell in row))
    console = rich.console.Console(width=120)
    console.print(table)
    harmless = sum(run.harmless(r.reward) for r in results)
    console.print(
        f"{harmless} of {len(results)} have a reward of 0, or none; files, sockets and secrets "
        f"outside were not reached. {sum(r.seconds for r in results):.0f} s. "
        "* passes without a sandbox, if the tests run in its own process.",
        highlight=False,
    )
    console.print(experiments.machine(), highlight=False)
    sys.exit(harmless < len(results))


if __name__ == "__main__":
    main()
