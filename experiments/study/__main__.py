"""Runs the study: every run, table and plot of RESULTS.md.

python -m experiments.study --workdir=runs/study
python -m experiments.study --workdir=runs/study_quick --quick
python -m experiments.study --render=experiments/study

Learning rates are tuned on some seeds and problems, and everything is reported on others. Every run
is the trainer on a config, in a directory below WORKDIR. Complete runs are read and not repeated,
so the command resumes where it stopped. WORKDIR receives results.json, figures/, RESULTS.md and
TABLES.md.

--quick trains PKPO with five k on fogged mazes, at one rate, and shows claims a and b.
--render runs nothing: it makes the page again from a folder's results.json.
"""

from __future__ import annotations

import pathlib
import signal
import sys
from collections.abc import Sequence

from absl import app, flags, logging

_WORKDIR = flags.DEFINE_string("workdir", "runs/study", "Directory of runs and results.")
_QUICK = flags.DEFINE_bool("quick", False, "Run only claims a and b, in minutes.")
_PROBLEMS = flags.DEFINE_list("problems", None, "Sets of problems to run; all by default.")
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds to report; design.py has the default.")
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Runs side by side, one core each; as many as there are cores by default.",
    lower_bound=1,
)
_PAGE = flags.DEFINE_string(
    "page", None, "Folder for the results and their page, instead of WORKDIR."
)
_RENDER = flags.DEFINE_string(
    "render", None, "Folder whose page is made again from its results.json; nothing is run."
)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags start with --.")
    logging.set_verbosity(logging.WARNING)
    # SIGTERM then ends the programs that were started, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Importing these here lets --help answer at once.
    import experiments
    from experiments.study import design, plan, report, results, runs

    if _RENDER.value:
        try:
            report.render(pathlib.Path(_RENDER.value).expanduser())
        except results.FormatError as e:
            sys.exit(f"stopped: {e}")
        return

    if _PAGE.value and (_QUICK.value or _PROBLEMS.value or _SEEDS.value):
        raise app.UsageError(
            "--page with a part of the study would drop the rest from that page; without --page "
            "the page goes to WORKDIR."
        )
    scope = design.QUICK if _QUICK.value else design.FULL
    names = _PROBLEMS.value or list(scope.methods)
    if unknown := [name for name in names if name not in scope.methods]:
        raise app.UsageError(
            f"--problems={unknown[0]}; expected some of {', '.join(scope.methods)}."
        )
    tuning = {seed for name in names for seed in design.PROBLEMS[name].tuning_seeds}
    given = _SEEDS.value or [str(seed) for seed in scope.seeds]
    try:
        seeds = [int(seed) for seed in given]
        if min(seeds) < 0 or len(set(seeds)) < len(seeds) or tuning & set(seeds):
            raise ValueError
    except ValueError:
        raise app.UsageError(
            f"--seeds={','.join(given)}; expected different whole numbers, none of "
            f"those that rates are tuned on ({', '.join(map(str, sorted(tuning)))})."
        ) from None
    workdir = pathlib.Path(_WORKDIR.value).expanduser().absolute()
    workers = _WORKERS.value or runs.count_cores()

    def run_all(todo: Sequence[runs.Job], title: str) -> None:
        runs.run_all(todo, workers=workers, cache=workdir / "compiled", title=title)

    try:
        found = plan.run(workdir, scope, names, seeds, run_all)
        found["machine"] = experiments.machine()
    except runs.JobError as e:
        sys.exit(f"stopped: {e}")
    except KeyboardInterrupt:
        print("\ninterrupted: the same command resumes from here.", file=sys.stderr)
        sys.exit(130)
    folder = pathlib.Path(_PAGE.value).expanduser() if _PAGE.value else workdir
    report.write(found, folder)
    print(f"{folder / 'RESULTS.md'}, with TABLES.md, figures/ and results.json beside it")


if __name__ == "__main__":
    app.run(main)
