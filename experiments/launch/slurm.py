"""Runs a config, or a sweep of k x seeds, on the GPUs of a SLURM cluster.

    SHARED=/shared
    python -m experiments.launch.slurm submit --name=math-2b --nodes=2 --gpus=8 \\
        --time=24:00:00 --runs_dir=$SHARED/runs --ks=1,2,4,8 --seeds=0,1,2 \\
        --config=configs/gemma2_2b_math.py --config.task.data_dir=$SHARED/MATH \\
        --config.model.checkpoint=$SHARED/gemma2-2b-it

prints the command, with its script, and it can be pasted into a shell; --execute runs it. Put a
directory that all nodes share into the first line; weights and problems lie in it. The sweep is one
job array, a run a task, kept in RUNS_DIR/NAME/k8_seed0; RUNS_DIR is on a file system that all nodes
share, and so is the repository, from whose root it is submitted, with the environment that has the
package (`pip install -e ".[cuda,math,gemma]"`) active.

A run has a process for each GPU, which JAX finds by SLURM's variables. Before the time is up they
are sent SIGTERM, save, and exit with 143: the task is queued again, and goes on from there. So it
does after a node failed, or the job was preempted. Other exit codes end the task; the same command
goes on with it.

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
    add("--nodes", type=_positive, default=1, help="Of one run.")
    add("--gpus", type=_positive, default=8, help="Of a node.")
    add("--cpus", type=_positive, default=8, help="Of a process: there is one for each GPU.")
    add("--time", default="24:00:00", help="The limit of a task, until it is queued again.")
    add(
        "--grace",
        type=_positive,
        default=300,
        help="Seconds before the limit to save in: a step and an evaluation have to end first.",
    )
    add("--at_once", type=_positive, help="How many tasks may run at a time; all, if not given.")
    add("--runs_dir", type=sweeps.directory, help="Where the runs are kept.")
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
    """What sbatch runs."""
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
            "# JAX gives each process of a node the GPU of its number: it has to see all of them.",
            "# Where one process fails, the others end.",
            'srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --gpu-bind=none --kill-on-bad-exit=1 \\',
            '  python -m pkpo_jax.main "${run[@]}"',
            "code=$?",
            "# It was told to end, and has saved.",
            'if [ "$code" = 143 ]; then',
            '  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
            "fi",
            'exit "$code"',
            "",
        ]
    )


def plan(args: argparse.Namespace) -> list[Command]:
    """The commands of an action."""
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
