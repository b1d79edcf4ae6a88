"""The command of a script that compares some runs: its flags, and where it works."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import app, flags, logging

from experiments.study import plan, runs

# The flags are those of the script, which --help then shows.
flags.disclaim_key_flags()


class Arguments(NamedTuple):
    """The arguments of the command line.

    Attributes:
      folder: directory of the runs.
      seeds: of the runs; one of them with --quick.
      quick: whether only a part is run.
      run_all: does the jobs.
    """

    folder: pathlib.Path
    seeds: list[int]
    quick: bool
    run_all: plan.RunAll


def run(compare: Callable[[Arguments], None], quick: str) -> None:
    """Runs a script as `python -m MODULE DIR [--quick] [--seeds=0,1,2] [--workers=2]`.

    Modules that import a script may define flags with these names, so that it calls this only when
    it is the program.

    Args:
      compare: what the script does. A job that fails, and Ctrl-C, end it with one line.
      quick: the help of --quick.
    """
    flags.DEFINE_bool("quick", False, quick)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of the runs.")
    flags.register_validator(
        "seeds",
        lambda given: (
            given
            and all(seed.isdecimal() for seed in given)
            and len(set(map(int, given))) == len(given)
        ),
        message="expected different whole numbers, as in 0,1,2",
    )
    flags.DEFINE_integer(
        "workers", 0, "Runs side by side; 0 for as many as there are cores.", lower_bound=0
    )

    def main(argv: Sequence[str]) -> None:
        if len(argv) != 2:
            raise app.UsageError("expected the directory of the runs.")
        logging.set_verbosity(logging.WARNING)
        given: Any = flags.FLAGS
        folder = pathlib.Path(argv[1]).expanduser().absolute()
        seeds = [int(seed) for seed in given.seeds][: 1 if given.quick else None]
        with runs.resumable():
            run_all = runs.runner(folder, given.workers or None)
            compare(Arguments(folder, seeds, given.quick, run_all))

    app.run(main)
