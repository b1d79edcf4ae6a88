"""Runs a config, or a sweep of k x seeds, on the GPUs of a SLURM cluster.

    SHARED=/shared
    python -m experiments.launch.slurm submit --name=math-2b --nodes=2 --gpus=8 \\
        --time=24:00:00 --runs_dir=$SHARED/runs --ks=1,2,4,8 --seeds=0,1,2 \\
        --config=configs/gemma2_2b_math.py --config.task.data_dir=$SHARED/MATH \\
        --config.model.checkpoint=$SHARED/gemma2-2b-it

This prints the command with its script, which can be pasted into a shell; --execute runs it. In the
first line, put a directory that all nodes share and that holds parameters and problems. The sweep
is one job array with a task for each run, for example in RUNS_DIR/NAME/k8_seed0. RUNS_DIR and the
repository are on a file system that all nodes share. Submit from the root of the repository, in the
environment that has the package (`pip install -e ".[cuda,math,gemma]"`).

A run has a process for each GPU, and JAX finds them through SLURM's variables. Before the time
limit, the processes get SIGTERM, save, and exit with 143; the task is queued again, and continues
from the checkpoint. The same happens after the failure of a node or preemption. Any other exit code
ends the task, and the same command resumes it.

This has not been tried on a cluster.
"""

from __future__ import annotations

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence

from experiments.launch import commands, sweeps
from experiments.launch.commands import Command, LaunchError

ACTIONS = {
    "submit": "submit the job array",
    "status": "list its tasks",
    "cancel": "cancel those that wait or run",
}


def flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = sweeps.Parser("slurm", str(__doc__), ACTIONS)
    add = parser.add_argument
    add("--nodes", type=_positive, default=1, help="Number of nodes of a run.")
    add("--gpus", type=_positive, default=8, help="Number of GPUs of a node.")
    add(
        "--cpus",
        type=_positive,
        default=8,
        help="Number of CPUs of a process; each GPU has one process.",
    )
    add("--time", default="24:00:00", help="Time limit of a task, after which it is queued again.")
    add(
        "--grace",
        type=_positive,
        default=300,
        help="Seconds between SIGTERM and the limit, for a step, an evaluation and the checkpoint.",
    )
    add("--at_once", type=_positive, help="Number of tasks that may run at once; all by default.")
    add("--runs_dir", type=sweeps.directory, help="Directory of the runs.")
    add(
        "--sbatch_flags",
        default="",
        help="More flags of sbatch, in quotes, as in '--partition=gpu --account=me'.",
    )
    args = parser.read(argv)
    if args.action == "submit" and not args.runs_dir:
        parser.error("--runs_dir is missing: expected a directory that all nodes share")
    return args


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number above 0")
    return int(text)


def script(args: argparse.Namespace, runs: Sequence[sweeps.Run]) -> str:
    """Returns the script for sbatch."""
    at_once = f"%{args.at_once}" if args.at_once else ""
    options = [
        f"--job-name={args.name}",
        f"--array=0-{len(runs) - 1}{at_once}",
        f"--nodes={args.nodes}",
        f"--ntasks-per-node={args.gpus}",
        f"--gpus-per-node={args.gpus}",
        f"--cpus-per-task={args.cpus}",
        f"--time={args.time}",
        "--requeue",
        f"--signal=TERM@{args.grace}",
        f"--output={args.runs_dir}/{args.name}/slurm-%A_%a.log",
        "--open-mode=append",
        *shlex.split(args.sbatch_flags),
    ]
    cases = [
        f"  {i}) run=({shlex.join(sweeps.trainer_arguments(args, run, args.runs_dir))}) ;;"
        for i, run in enumerate(runs)
    ]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {commands.quote(option)}" for option in options),
            "set -uo pipefail",
            "case $SLURM_ARRAY_TASK_ID in",
            *cases,
            "  *) exit 2 ;;",
            "esac",
            "# JAX assigns GPUs to the processes of a node, so each of them has to see all GPUs.",
            "# Where one process fails, the others end.",
            'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --gpu-bind=none --kill-on-bad-exit=1 \\',
            '  python -m pkpo_jax.main "${run[@]}"',
            "code=$?",
            "# The run got SIGTERM, and has saved.",
            'if [ "$code" = 143 ]; then',
            '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
            "fi",
            'exit "$code"',
            "",
        ]
    )


def plan(args: argparse.Namespace) -> list[Command]:
    """Returns the commands of an action."""
    if args.action == "status":
        return [Command(("squeue", "--me", f"--name={args.name}"), "List the tasks.")]
    if args.action == "cancel":
        return [Command(("scancel", f"--name={args.name}"), "Cancel the tasks.")]
    runs = sweeps.sweep(args.ks, args.seeds)
    sweeps.check_runs(args, runs, args.nodes * args.gpus)
    logs = ("mkdir", "-p", f"{args.runs_dir}/{args.name}")
    return [
        Command(logs, "The logs are written there."),
        Command(("sbatch",), "Submit the runs.", script(args, runs)),
    ]


def launch(argv: Sequence[str]) -> None:
    args = flags(argv)
    steps = plan(args)
    if args.execute and args.action == "submit":
        for flag, path in sweeps.paths_within(args, "/"):
            if not pathlib.Path(path).exists():
                raise LaunchError(f"{flag} does not exist; copy it there first.", 2)
    commands.show_or_do(steps, args.execute)


if __name__ == "__main__":
    sys.exit(commands.main(launch, sys.argv[1:]))
