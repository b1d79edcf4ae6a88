"""The command of a study: its flags, which all studies share, and what they do."""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Sequence

from absl import app, flags, logging

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory of runs and results; runs/NAME of the study by default."
)
_QUICK = flags.DEFINE_bool("quick", False, "Run only a part, in minutes.")
_PROBLEMS = flags.DEFINE_list("problems", None, "Sets of problems to run; all by default.")
_METHODS = flags.DEFINE_list("methods", None, "Methods to run; all by default.")
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds to report; design.py has the default.")
_WORKERS = flags.DEFINE_integer(
    "workers",
    None,
    "Runs side by side, one core each; as many as there are cores by default. If a run of this "
    "study has all cores, there is one.",
    lower_bound=1,
)
_PAGE = flags.DEFINE_string(
    "page", None, "Folder for the results and their page, instead of WORKDIR."
)
_RENDER = flags.DEFINE_string(
    "render", None, "Folder whose page is made again from its results.json; nothing is run."
)
_JOIN = flags.DEFINE_list(
    "join",
    None,
    "Folders, such as the WORKDIR of other seeds or problems, whose results.json is joined with "
    "that of --render first.",
)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Pretrained parameters, which a study of a pretrained policy starts from."
)
_ESTIMATE = flags.DEFINE_bool("estimate", False, "Print what would be run, and run nothing.")


def main(module: str, argv: Sequence[str]) -> None:
    """Runs the study of a module such as "experiments.study", whose page.py holds STUDY."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags start with --.")
    logging.set_verbosity(logging.WARNING)
    # Importing these here lets --help answer at once.
    import experiments
    from experiments.study import plan, report, results, runs

    study = importlib.import_module(f"{module}.page").STUDY
    design = study.design
    if _JOIN.value and not _RENDER.value:
        raise app.UsageError(
            "--join adds to the results in the folder of --render, which is missing."
        )
    if _RENDER.value:
        folder = pathlib.Path(_RENDER.value).expanduser()
        try:
            found = results.load(folder / "results.json")
            for other in _JOIN.value or ():
                part = results.load(pathlib.Path(other).expanduser() / "results.json")
                if foreign := sorted(set(part["problems"]) - set(design.problems)):
                    raise results.JoinError(f"{other}: this study has no problems {foreign[0]!r}.")
                found = results.join(found, part)
        except (results.FormatError, results.JoinError) as e:
            sys.exit(f"stopped: {e}")
        report.write(study, found, folder)
        return

    if _PAGE.value and (_QUICK.value or _PROBLEMS.value or _METHODS.value or _SEEDS.value):
        raise app.UsageError(
            "--page with a part of the study would drop the rest from that page; without --page "
            "the page goes to WORKDIR, and --render=FOLDER --join=WORKDIR adds it to that of "
            "FOLDER."
        )
    scope = design.quick if _QUICK.value else design.full
    if unknown := [method for method in _METHODS.value or () if method not in design.methods]:
        raise app.UsageError(
            f"--methods={unknown[0]}; expected some of {', '.join(design.methods)}."
        )
    if _METHODS.value:
        there = [m for m in design.methods if any(m in some for some in scope.methods.values())]
        scope = scope.only(_METHODS.value)
        if not scope.methods:
            who = "--quick" if _QUICK.value else "the study"
            raise app.UsageError(
                f"--methods={','.join(_METHODS.value)}; {who} runs only {', '.join(there)}."
            )
    names = _PROBLEMS.value or list(scope.methods)
    if unknown := [name for name in names if name not in scope.methods]:
        raise app.UsageError(
            f"--problems={unknown[0]}; expected some of {', '.join(scope.methods)}"
            + (", which have one of --methods." if _METHODS.value else ".")
        )
    tuning = {seed for name in names for seed in design.problems[name].tuning_seeds}
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
    count, hours = plan.estimate(design, scope, names, seeds)
    each = "hours on all cores" if design.all_cores else "core-hours"
    print(f"{count} runs at most, about {hours:.1f} {each} on an idle machine", flush=True)
    if _ESTIMATE.value:
        return
    checkpoint = _CHECKPOINT.value or ""
    if design.pretrained != bool(checkpoint):
        expected = (
            "the directory of pretrained parameters" if design.pretrained else "no checkpoint"
        )
        raise app.UsageError(f"--checkpoint={checkpoint}; {module} expects {expected}.")
    if checkpoint:
        checkpoint = str(pathlib.Path(checkpoint).expanduser().absolute())
    name = _WORKDIR.value or f"runs/{module.rpartition('.')[2]}"
    workdir = pathlib.Path(name).expanduser().absolute()
    run_all = runs.runner(workdir, _WORKERS.value, all_cores=design.all_cores)
    with runs.resumable():
        found = plan.run(study, workdir, scope, names, seeds, run_all, checkpoint)
    found["machine"] = experiments.machine()
    folder = pathlib.Path(_PAGE.value).expanduser() if _PAGE.value else workdir
    report.write(study, found, folder)
    print(f"{folder / 'RESULTS.md'}, with TABLES.md, figures/ and results.json beside it")
