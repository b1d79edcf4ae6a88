"""Runs a config, or a sweep of k x seeds, on the TPUs of a GKE cluster, with xpk.

    CLUSTER=my-cluster PROJECT=my-project BUCKET=gs://my-bucket
    python -m experiments.launch.xpk create --name=math-2b --cluster=$CLUSTER \\
        --project=$PROJECT --zone=us-west4-a --tpu_type=v5litepod-128 --bucket=$BUCKET \\
        --config=configs/gemma2_2b_math.py --config.task.data_dir=/mnt/pkpo/MATH \\
        --config.model.checkpoint=/mnt/pkpo/gemma2-2b-it

This prints the commands, each of which can be pasted into a shell; --execute runs them. Put your
own cluster, project and bucket into the first line. The other actions take the same flags. Each
pair of --ks and --seeds is a workload, for example NAME-k8-seed0, and is kept in
SHARED_DIR/runs/NAME/k8_seed0. Run `attach` first, once for each cluster. It mounts the bucket,
which needs a hierarchical namespace (see tpu_vm).

A workload that is preempted or crashes is started again on the cluster, up to --max_restarts times,
and continues from its newest checkpoint. It is not started again after the trainer's exit codes 2
and 3, after which it would fail again. Each pod installs the packages when it starts, unless
--docker_image is an image that has them, with this repository in its working directory.

None of this has been tried on Google Cloud; the flags are those of xpk 1.x.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from experiments.launch import commands, sweeps
from experiments.launch.commands import Command, LaunchError

ACTIONS = {
    "attach": "mount the bucket on the cluster, once for each cluster",
    "create": "create a workload for each run",
    "status": "list the workloads",
    "logs": "show the last lines of the first pods' logs",
    "delete": "delete the workloads, and keep the bucket",
}
_STORAGE = "pkpo"


def flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = sweeps.Parser("xpk", str(__doc__), ACTIONS)
    add = parser.add_argument
    add("--cluster", required=True, help="Cluster that xpk has created.")
    add("--project", required=True, help="Google Cloud project.")
    add("--zone", required=True, help="Zone of the cluster, as in us-west4-a.")
    add("--tpu_type", type=sweeps.accelerator, default="v5litepod-128", help="Type of a slice.")
    add("--bucket", type=sweeps.bucket, help="Bucket that the pods share; attach needs it.")
    add(
        "--shared_dir",
        type=sweeps.directory,
        default="/mnt/pkpo",
        help="Where it is mounted in the pods.",
    )
    add("--base_docker_image", default="python:3.11", help="Image to which the commit is added.")
    add("--docker_image", help="Image with everything installed, used instead.")
    add("--extras", default="tpu,gemma,math,code,arc", help="Extras of the package to install.")
    add("--max_restarts", type=int, default=50, help="Number of restarts of a workload.")
    add("--create_flags", default="", help="More flags of xpk workload create, in quotes.")
    args = parser.read(argv)
    if args.action == "attach" and not args.bucket:
        parser.error("--bucket is missing: expected a bucket, as in --bucket=gs://my-bucket")
    return args


class Cluster:
    """The xpk commands on a cluster."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        where = (f"--cluster={args.cluster}", f"--project={args.project}", f"--zone={args.zone}")
        self._where = where

    def attach(self) -> Command:
        args = self.args
        # The options are those of worker.sh.
        options = (
            "implicit-dirs,rename-dir-limit=200000,metadata-cache-ttl-secs=0,"
            "metadata-cache-negative-ttl-secs=0,enable-streaming-writes=false"
        )
        mount = (f"--mount-point={args.shared_dir}", "--readonly=false", "--auto-mount=false")
        of = ("--type=gcsfuse", f"--bucket={args.bucket.removeprefix('gs://')}", "--size=1000")
        rest = (*of, *mount, "--no-prefetch-metadata", f"--mount-options={options}")
        why = "Have the cluster mount the bucket."
        return Command(("xpk", "storage", "attach", _STORAGE, *self._where, *rest), why)

    def pack(self, commit: str) -> list[Command]:
        """Returns the commands that unpack the commit in the directory that xpk uploads."""
        tree = f"{commands.PACKED}/pkpo_jax-{commit}"
        archive = ("git", "archive", "--format=tar", f"--output={tree}.tar", commit)
        return [
            Command(archive, "Pack the commit, and unpack it by itself."),
            Command(("mkdir", "-p", tree)),
            Command(("tar", "-xf", f"{tree}.tar", "-C", tree)),
        ]

    def create(self, run: sweeps.Run, commit: str) -> Command:
        args = self.args
        words = sweeps.trainer_arguments(args, run, f"{args.shared_dir}/runs")
        # The trainer replaces the shell, so that SIGTERM reaches it.
        script = f"exec python -m pkpo_jax.main {shlex.join(words)}"
        image = [f"--docker-image={args.docker_image}"]
        if not args.docker_image:
            package = shlex.quote(f".[{args.extras}]")
            script = f"pip install uv && uv pip install --system -e {package} && {script}"
            tree = f"{commands.PACKED}/pkpo_jax-{commit}"
            image = [f"--base-docker-image={args.base_docker_image}", f"--script-dir={tree}"]
        restarts = [
            f"--max-restarts={args.max_restarts}",
            # 1 is a crash, and 4 a directory that could not be written. Signals are among the codes
            # after which xpk itself restarts.
            "--restart-on-exit-codes=1,4",
            "--termination-grace-period-seconds=300",
        ]
        kind = (f"--tpu-type={args.tpu_type}", "--num-slices=1", f"--storage={_STORAGE}")
        rest = (*kind, *image, *restarts, *shlex.split(args.create_flags))
        return self._workload("create", run, *rest, f"--command={script}", why="Start the run.")

    def status(self) -> Command:
        words = ("xpk", "workload", "list", *self._where, f"--filter-by-job={self.args.name}")
        return Command(words, "List the workloads.")

    def credentials(self) -> Command:
        args = self.args
        words = ("gcloud", "container", "clusters", "get-credentials", args.cluster)
        region = args.zone.rpartition("-")[0]  # Clusters of xpk are regional.
        where = (f"--project={args.project}", f"--location={region}")
        return Command((*words, *where), "Let kubectl reach the cluster.")

    def logs(self, run: sweeps.Run) -> Command:
        labels = f"jobset.sigs.k8s.io/jobset-name={self._name(run)}"
        first = "batch.kubernetes.io/job-completion-index=0"
        selector = f"--selector={labels},{first}"
        return Command(
            ("kubectl", "logs", selector, "--container=jax-tpu", "--tail=50"), "Show the log."
        )

    def delete(self, run: sweeps.Run) -> Command:
        return self._workload("delete", run, "--force", why="Delete the workload.")

    def _name(self, run: sweeps.Run) -> str:
        name = "-".join(part for part in (self.args.name, run.name.replace("_", "-")) if part)
        if len(name) > 40:
            raise LaunchError(f"{name} is longer than the 40 letters of xpk; shorten --name.", 2)
        return name

    def _workload(self, verb: str, run: sweeps.Run, *rest: str, why: str) -> Command:
        name = f"--workload={self._name(run)}"
        return Command(("xpk", "workload", verb, name, *self._where, *rest), why)


def plan(args: argparse.Namespace) -> list[Command]:
    """Returns the commands of an action."""
    cluster, runs = Cluster(args), sweeps.sweep(args.ks, args.seeds)
    if args.action == "attach":
        return [cluster.attach()]
    if args.action == "status":
        return [cluster.status()]
    if args.action == "logs":
        return [cluster.credentials(), *map(cluster.logs, runs)]
    if args.action == "delete":
        return list(map(cluster.delete, runs))
    sweeps.check_runs(args, runs, sweeps.devices(args.tpu_type))
    commit = "" if args.docker_image else commands.commit(clean=args.execute)
    packed = cluster.pack(commit) if commit else []
    return [*packed, *(cluster.create(run, commit) for run in runs)]


def launch(argv: Sequence[str]) -> None:
    args = flags(argv)
    steps = plan(args)
    if args.execute and args.action in ("attach", "create") and args.bucket:
        sweeps.check_bucket(args)
    commands.show_or_do(steps, args.execute)


if __name__ == "__main__":
    sys.exit(commands.main(launch, sys.argv[1:]))
