"""Runs a config, or a sweep of k x seeds, on Cloud TPU slices.

    PROJECT=my-project BUCKET=gs://my-bucket
    python -m experiments.launch.tpu_vm launch --name=math-2b --project=$PROJECT \\
        --zone=us-west4-a --accelerator=v5litepod-128 --bucket=$BUCKET \\
        --config=configs/gemma2_2b_math.py --config.task.data_dir=/mnt/pkpo/MATH \\
        --config.model.checkpoint=/mnt/pkpo/gemma2-2b-it

This prints the commands, each of which can be pasted into a shell; --execute runs them. Put your
own project and bucket into the first line. The other actions take the same flags. Each pair of --ks
and --seeds is a run with its own slice, for example NAME-k8-seed0. With --one_slice, all runs share
one slice and run one after another.

The workers get the commit that is checked out, and mount the bucket at --shared_dir. Put parameters
and problems into the bucket first, as in `gcloud storage cp -r gemma2-2b-it $BUCKET/`; --execute
checks that they exist before it requests a slice. A run is kept in SHARED_DIR/runs/NAME/k8_seed0,
with the trainers' logs and, once it has ended, a file `finished`. If machines are lost, the same
action resumes the run from its newest checkpoint: `launch` and `resume` do so once, and `watch`
until all runs are finished, after which it deletes the slices.

The bucket needs a hierarchical namespace, because checkpoints are directories that are renamed:

    BUCKET=gs://my-bucket
    gcloud storage buckets create $BUCKET --location=us-west4 --uniform-bucket-level-access \\
        --enable-hierarchical-namespace

Without one, a rename copies every file, and an interrupted rename leaves a checkpoint that the next
start sets aside. --nfs=HOST:/EXPORT, for example a Filestore instance, is a complete file system.
None of this has been tried on Google Cloud.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.launch import commands, slices, sweeps, watching
from experiments.launch.commands import LaunchError

ACTIONS = {
    "launch": "create, wait, install and start, without the steps that are already done",
    "resume": "the same for runs that were preempted, stopped or crashed",
    "watch": "launch, and resume until all runs are finished",
    "create": "request the slices",
    "install": "install on every worker",
    "start": "start on all workers",
    "status": "show the states of slices and workers",
    "logs": "show the last lines of the trainers' logs",
    "stop": "end the trainers, which save first, and keep the slices",
    "delete": "delete the slices, and keep the bucket",
}
# These actions cost money or run something, so the configs are checked first.
_CHECKED = ("launch", "resume", "watch", "create", "start")


def flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = sweeps.Parser("tpu_vm", str(__doc__), ACTIONS)
    add = parser.add_argument
    add("--project", required=True, help="Google Cloud project.")
    add("--zone", required=True, help="Zone that has such TPUs, as in us-west4-a.")
    add(
        "--accelerator",
        type=sweeps.accelerator,
        default="v5litepod-128",
        help="Kind and size of a slice.",
    )
    add("--runtime_version", help="Image of the machines; by default, the one for such TPUs.")
    add("--spot", action="store_true", help="Use cheaper slices that can be preempted.")
    add("--create_flags", default="", help="More flags of queued-resources create, in quotes.")
    add(
        "--existing",
        action="store_true",
        help="Use the existing TPU VM NAME, which is neither created nor deleted.",
    )
    add("--one_slice", action="store_true", help="Run all runs one after another on one slice.")
    add("--bucket", type=sweeps.bucket, help="Bucket that the workers share, mounted with gcsfuse.")
    add("--nfs", help="HOST:/EXPORT, mounted with NFS instead of a bucket.")
    add(
        "--shared_dir",
        type=sweeps.directory,
        default="/mnt/pkpo",
        help="Where it is mounted on the workers.",
    )
    add("--extras", default="tpu,gemma,math,code,arc", help="Extras of the package to install.")
    add("--worker", default="0", help="Worker whose logs are shown, a number or all.")
    add("--lines", type=int, default=50, help="Number of lines of the logs.")
    add("--poll", type=float, default=30.0, help="Seconds between two queries of the state.")
    add("--keep", action="store_true", help="Let watch keep the slices of runs that have ended.")
    args = parser.read(argv)
    args.runtime_version = (
        args.runtime_version or sweeps.RUNTIMES[args.accelerator.partition("-")[0]]
    )
    if bool(args.bucket) == bool(args.nfs):
        parser.error("--bucket or --nfs: expected one of them, as in --bucket=gs://my-bucket")
    if args.existing and args.action in ("create", "delete"):
        parser.error(f"--existing: {args.action} does not apply to a TPU VM that exists already")
    return args


def slices_of(args: argparse.Namespace) -> list[slices.Slice]:
    runs = sweeps.sweep(args.ks, args.seeds)
    commit = ""
    if args.action in _CHECKED:
        sweeps.check_runs(args, runs, sweeps.devices(args.accelerator))
    if args.action in (*_CHECKED, "install"):
        commit = commands.commit(clean=args.execute)
    if len(runs) == 1 or args.one_slice:
        return [slices.Slice(args.name, tuple(runs), args, commit)]
    if args.existing:
        raise LaunchError("--existing uses one slice; add --one_slice for a sweep.", 2)
    return [
        slices.Slice(f"{args.name}-{run.name.replace('_', '-')}", (run,), args, commit)
        for run in runs
    ]


def show(it: slices.Slice) -> None:
    """Prints the commands of an action in order, as if no slice existed yet."""
    args = it.args
    steps = {
        "status": [it.state(), it.machines(), it.status(), *it.finished_marks()],
        "logs": [it.logs(args.worker, args.lines)],
        "stop": [it.stop()],
        "delete": [it.delete()],
        "create": [it.create()],
        "install": it.install(),
        "start": [it.start()],
    }
    if args.action in steps:
        for command in steps[args.action]:
            command.show()
        return
    if not args.existing:
        if args.action == "resume":
            print("# Only if it is SUSPENDED or FAILED, or its machines are PREEMPTED:")
            it.delete().show()
        it.create().show()
        ready = f'until [ "$({it.state().line()})" = ACTIVE ]; do sleep {args.poll:g}; done'
        print(f"# Wait until it is there; one that is FAILED or SUSPENDED stays so.\n{ready}\n")
    for command in [*it.install(), it.start()]:
        command.show()
    if args.action == "watch":
        print(
            "# Then status again and again, with the commands of resume where needed, and finally"
        )
        it.delete().show()


def execute(args: argparse.Namespace, its: Sequence[slices.Slice]) -> None:
    shell = commands.Shell()
    watched = [watching.Watched(it, shell) for it in its]
    if args.action in ("launch", "resume"):
        watching.bring(watched, ("running", "finished"), args.poll, clean=False)
    elif args.action == "watch":
        watching.bring(watched, ("finished",), args.poll, clean=not args.keep)
    for one in watched:
        it = one.it
        if args.action == "delete":
            one.delete(one.look())
        elif args.action == "status":
            state = one.look()
            print(f"{it.name}: {state}", flush=True)
            for command in [it.status()] if state == "ACTIVE" else it.finished_marks():
                shell.run(command)
        elif args.action == "install":
            for command in it.install():
                shell.do(command)
        elif args.action == "logs":
            shell.do(it.logs(args.worker, args.lines))
        elif args.action == "create" and (state := one.look()) != "NOT_FOUND":
            print(f"{it.name} is there: {state}")
        elif args.action == "create":
            one.create()
        elif args.action in ("start", "stop"):
            shell.do(getattr(it, args.action)())


def launch(argv: Sequence[str]) -> None:
    args = flags(argv)
    its = slices_of(args)
    if args.execute:
        if args.action in _CHECKED and args.bucket:
            sweeps.check_bucket(args)
        execute(args, its)
        return
    print(
        "# Nothing is run: this is what --execute does. gcloud reaches several workers with a key"
    )
    print("# that the agent holds: ssh-add ~/.ssh/google_compute_engine\n")
    for it in its:
        print(f"# {it.name}: {', '.join(run.name for run in it.runs if run.name) or 'one run'}.\n")
        show(it)


if __name__ == "__main__":
    sys.exit(commands.main(launch, sys.argv[1:]))
