"""Measures whole RL steps, and the first one, beside GRPO of Tunix where that is installed.

python -m experiments.benchmarks.whole_step --tunix=/path/to/python

--tunix is the interpreter of an environment with google-tunix 0.1.7. Both sides train a Gemma-2 of
4 layers of 128 units in float32 on 8 x 16 responses of 32 tokens, with Adam and without a
reference, and the reward of a response is the number of a letter in it. Each row of the table is a
fresh process. A step lasts from the grading of its responses until that of the next ones. The first
column of a side is the time from the start of training until the second grading, which needs every
program. It is measured with an empty cache of compiled programs and with a filled one. `--record`
and `--show` are those of `inner_loop`.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
import rich.table
from absl import app, flags

from experiments.benchmarks import history

_TUNIX = flags.DEFINE_string("tunix", "", "The interpreter of an environment with Tunix.")
_LENGTHS = flags.DEFINE_list("lengths", ["16", "256", "1024"], "Tokens of a prompt.")
_STEPS = flags.DEFINE_integer("steps", 8, "Number of steps of a process.", lower_bound=3)
_RECORD = flags.DEFINE_bool("record", False, "Append the result to history.jsonl.")
_SHOW = flags.DEFINE_bool("show", False, "Print the recorded results, and run nothing.")

NAME = "whole_step"
_PACKAGE = [sys.executable, "-m", "experiments.benchmarks.package_step"]
_SCRIPT = pathlib.Path(__file__).with_name("tunix_step.py")


def run(command: Sequence[str], length: int, cache: str) -> dict[str, Any]:
    """Returns {"first_s": ..., "step_s": ..., "spread_s": ...}, or {"error": ...}."""
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    arguments = [*command, str(_STEPS.value), str(length)]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    if result.returncode:
        # A process that is killed for its memory leaves no message.
        last = (result.stderr.strip().splitlines() or [""])[-1][:200]
        return {"error": last or f"exit code {result.returncode}"}
    rewarded = json.loads(result.stdout.splitlines()[-1])["rewarded"]
    low, median, high = np.quantile(np.diff(rewarded)[1:], (0.25, 0.5, 0.75))
    return {"first_s": rewarded[1], "step_s": median, "spread_s": (high - low) / 2}


def measure(length: int) -> dict[str, Any]:
    """Returns the times of both sides by side, each with an empty cache and then a filled one."""
    sides = {"package": _PACKAGE}
    if _TUNIX.value:
        sides["tunix"] = [_TUNIX.value, str(_SCRIPT)]
    figures: dict[str, Any] = {}
    for side, command in sides.items():
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = run(command, length, cache), run(command, length, cache)
        cached = {"first_cached_s": warm["first_s"]} if "first_s" in warm else warm
        figures[side] = {**warm, **cold, **cached}
    return figures


def show(console: rich.console.Console, record: dict[str, Any]) -> None:
    """Prints the figures of one run as a table."""
    columns = ("first, s", "from the cache, s", "a step, ms")
    table = rich.table.Table("prompt", *columns, "Tunix: first, s", *columns[1:], "Tunix / package")
    for length, figures in record["figures"].items():
        row = []
        for side in ("package", "tunix"):
            times = figures.get(side, {"error": "not measured"})
            if "error" in times:
                row += [times["error"], "", ""]
                continue
            step = f"{1e3 * times['step_s']:,.0f} ± {1e3 * times['spread_s']:,.0f}"
            row += [f"{times['first_s']:.1f}", f"{times['first_cached_s']:.1f}", step]
        both = [figures.get(side, {}).get("step_s") for side in ("package", "tunix")]
        table.add_row(length, *row, f"{both[1] / both[0]:.2f}" if all(both) else "")
    console.print(table)
    console.print(history.about(record), highlight=False)


def main(argv: Sequence[str]) -> None:
    del argv
    console = rich.console.Console(width=120)
    if _SHOW.value:
        for record in history.read(NAME):
            show(console, record)
        return
    figures = {length: measure(int(length)) for length in _LENGTHS.value}
    record = history.describe(NAME, figures, steps=_STEPS.value)
    show(console, record)
    if _RECORD.value:
        history.append(record)


if __name__ == "__main__":
    app.run(main)
