"""Runs a config, or a sweep of k x seeds, on Cloud TPU slices.

    PROJECT=my-project BUCKET=gs://my-bucket
    python -m experiments.launch.tpu_vm launch --name=math-2b --project=$PROJECT \\
        --zone=us-west4-a --accelerator=v5litepod-128 --bucket=$BUCKET \\
        --config=configs/gemma2_2b_math.py --config.task.data_dir=/mnt/pkpo/MATH \\
        --config.model.checkpoint=/mnt/pkpo/gemma2-2b-it

prints the commands, each of which can be pasted into a shell; --execute runs them. Put your own
project and bucket into the first line. The other actions take the same flags. Each pair of --ks and
--seeds is a run, and has a slice of its own, NAME-k8-seed0 for one, unless --one_slice has them
done one after another.

The workers get the commit that is checked out. They mount the bucket at --shared_dir: put weights
and problems there beforehand, as in `gcloud storage cp -r gemma2-2b-it $BUCKET/`; --execute looks
whether they are there before it asks for a slice. A run is kept in SHARED_DIR/runs/NAME/k8_seed0,
with the trainers' logs, and a file `finished` at its end. Whatever is taken away, the same action
brings a run back to where it was: `launch` and `resume` once, `watch` until all are finished, and
then it deletes the slices.

The bucket needs a hierarchical namespace, for checkpoints are directories that are renamed:

    BUCKET=gs://my-bucket
    gcloud storage buckets create $BUCKET --location=us-west4 --uniform-bucket-level-access \\
        --enable-hierarchical-namespace

Without one, a rename is a copy of every file, and one that is interrupted leaves a checkpoint that
the next start sets aside. --nfs=HOST:/EXPORT, a Filestore instance for one, is a file system in
every respect. None of this has been tried on Google Cloud.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from experiments.launch import commands, slices, sweeps, watching
from experiments.launch.commands import LaunchError

ACTIONS = {
    "launch": "create, wait, install and start, as far as it is not done",
    "resume": "the same, of what was preempted, stopped or crashed",
    "watch": "launch, and resume until all runs are finished",
    "create": "ask for the slices",
    "install": "install on every worker",
    "start": "start on all workers",
    "status": "what slices and workers do",
    "logs": "the last of what the trainers said",
    "stop": "end the trainers, which save first; the slices stay",
    "delete": "delete the slices; what is in the bucket stays",
}
# These pay for something, or run something.
_CHECKED = ("launch", "resume", "watch", "create", "start")


def flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = sweeps.Parser("tpu_vm", str(__doc__), ACTIONS)
    add = parser.add_argument
    add("--project", required=True, help="Of Google Cloud.")
    add("--zone", required=True, help="One that has such TPUs, as in us-west4-a.")
    add(
        "--accelerator",
        type=sweeps.accelerator,
        default="v5litepod-128",
        help="The kind and size of a slice.",
    )
    add("--runtime_version", help="The image of the machines; by default, the one for such TPUs.")
    add("--spot", action="store_true", help="Slices that are cheaper and can be preempted.")
    add("--create_flags", default="", help="More flags of queued-resources create, in quotes.")
    add(
        "--existing",
        action="store_true",
        help="The TPU VM NAME is there: neither create it nor delete it.",
    )
    add("--one_slice", action="store_true", help="All runs one after another, on one slice.")
    add("--bucket", type=sweeps.bucket, help="What the workers share, mounted with gcsfuse.")
    add("--nfs", help="In its place, HOST:/EXPORT, mounted with NFS.")
    add("--shared_dir", type=sweeps.directory, default="/mnt/pkpo", help="Where it is mounted.")
    add("--extras", default="tpu,gemma,math,code,arc", help="Of the package, to install.")
    add("--worker", default="0", help="With logs, a number or all.")
    add("--lines", type=int, default=50, help="With logs, how many.")
    add("--poll", type=float, default=30.0, help="Seconds between two looks.")
    add("--keep", action="store_true", help="With watch, keep the slices of runs that have ended.")
    args = parser.read(argv)
    args.runtime_version = (
        args.runtime_version or sweeps.RUNTIMES[args.accelerator.partition("-")[0]]
    )
    if bool(args.bucket) == bool(args.nfs):
        parser.error("--bucket or --nfs: expected one of them, as in --bucket=gs://my-bucket")
    if args.existing and args.action in ("create", "delete"):
        parser.error(f"--existing: {args.action} is not for a TPU VM that was there before")
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
        raise LaunchError("--existing is one slice; add --one_slice for a sweep.", 2)
    return [
        slices.Slice(f"{args.name}-{run.name.replace('_', '-')}", (run,), args, commit)
        for run in runs
    ]


def show(it: slices.Slice) -> None:
    """Prints what an action does, in order, as if nothing were there."""
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
        print("# Then status, again and again; what resume does, where it is needed; in the end")
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
