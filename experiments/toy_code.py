"""Writes tiny programming problems in MBPP's layout, for a character policy on a CPU.

python -m experiments.toy_code DIR [--problems=1000] [--seed=0]

The problems are in DIR/mbpp.jsonl, for task.data_dir=DIR with task.evaluate_on=mbpp and
task.instruct=False. There are --problems training problems, and a fifth as many test problems, at
most 500. In each problem, the policy has to find a function of one integer. The prompt shows one of
its values, and the tests check two more:

    Find f.                     def f(x): return x+4
    assert f(2) == 6

Several programs fit the value that is shown (x+4, 3*x, x*x+2), and few of them pass all tests. No
single program is always right, so the policies that maximise pass@1 and pass@k differ. Both splits
are sampled alike and share prompts; the function behind a prompt is what is held out. Prompts have
up to 26 characters, solutions up to 22.
"""

from __future__ import annotations

import json
import pathlib
import random
from collections.abc import Sequence
from typing import Any

from absl import app, flags

_PROBLEMS = flags.DEFINE_integer("problems", 1000, "Number of training problems.", lower_bound=5)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the problems.")

# These are the task ids of MBPP's test split, and the first one of its training split, which is
# open-ended here.
TEST, TRAIN = range(11, 511), 511
SHOWN, ARGUMENTS = range(2, 6), range(10)


def functions() -> list[str]:
    """Returns the bodies of all functions."""
    forms = ("x+{a}", "x-{a}", "{a}-x", "{a}*x", "x*x+{a}")
    return [form.format(a=a) for form in forms for a in range(1, 6)]


def problem(rng: random.Random) -> dict[str, Any]:
    """Returns a random function as a problem, with one shown test and two hidden ones."""
    body, shown = rng.choice(functions()), rng.choice(SHOWN)
    function = eval(f"lambda x: {body}")
    hidden = rng.sample([x for x in ARGUMENTS if x != shown], 2)
    return {
        "text": "Find f.",
        "code": f"def f(x): return {body}",
        "test_setup_code": "",
        "test_list": [f"assert f({x}) == {function(x)}" for x in (shown, *hidden)],
        "challenge_test_list": [],
    }


def problems(count: int, seed: int) -> list[dict[str, Any]]:
    """Returns the problems of both splits, the test split first."""
    rng = random.Random(seed)
    numbers = [*TEST[: count // 5], *range(TRAIN, TRAIN + count)]
    return [{"task_id": number, **problem(rng)} for number in numbers]


def main(argv: Sequence[str]) -> None:
    if len(argv) != 2:
        raise app.UsageError("expected the directory to write mbpp.jsonl to.")
    directory = pathlib.Path(argv[1])
    rows = problems(_PROBLEMS.value, _SEED.value)
    directory.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "mbpp.jsonl").write_text(lines)
    print(f"{len(rows)} problems in {directory / 'mbpp.jsonl'}, {_PROBLEMS.value} to train on.")


if __name__ == "__main__":
    app.run(main)
