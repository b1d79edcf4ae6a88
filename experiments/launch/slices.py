"""The gcloud commands for a TPU slice."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import shlex

from experiments.launch import commands, sweeps
from experiments.launch.commands import Command
from experiments.launch.sweeps import Run

WORKER = "pkpo_jax/experiments/launch/worker.sh"


@dataclasses.dataclass(frozen=True)
class Slice:
    """The commands for one slice, on which `runs` run one after another."""

    name: str
    runs: tuple[Run, ...]
    args: argparse.Namespace
    commit: str = ""

    def _queued(self, verb: str, *rest: str, why: str) -> Command:
        return self._gcloud("queued-resources", verb, self.name, *rest, why=why)

    def _gcloud(self, *words: str, why: str) -> Command:
        at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
        where = (f"--project={self.args.project}", f"--zone={self.args.zone}")
        return Command(("gcloud", "compute", "tpus", *words[:at], *where, *words[at:]), why)

    def create(self) -> Command:
        args = self.args
        kind = [
            f"--accelerator-type={args.accelerator}",
            f"--runtime-version={args.runtime_version}",
        ]
        spot = ["--spot"] if args.spot else []
        flags = [f"--node-id={self.name}", *kind, *spot, *shlex.split(args.create_flags)]
        why = "Ask for the slice. The request waits in a queue until there is room."
        return self._queued("create", *flags, why=why)

    def state(self) -> Command:
        why = "In which state is the request?"
        return self._queued("describe", "--format=value(state.state)", why=why)

    def reason(self) -> Command:
        why = "Why did the request fail?"
        return self._queued("describe", "--format=value(state.failedData.error.message)", why=why)

    def delete(self) -> Command:
        return self._queued("delete", "--force", "--quiet", why="Delete the request and the slice.")

    def machines(self) -> Command:
        words = ("tpu-vm", "describe", self.name, "--format=value(state)")
        return self._gcloud(*words, why="In which state are its machines?")

    def ssh(self, script: str, why: str, worker: str = "all") -> Command:
        flags = ("--strict-host-key-checking=no", "--quiet", f"--command={script}")
        return self._gcloud("tpu-vm", "ssh", self.name, f"--worker={worker}", *flags, why=why)

    def finished_marks(self) -> list[Command]:
        """Returns commands that succeed if the bucket holds the marker of a finished run."""
        if not self.args.bucket:
            return []
        runs = f"{self.args.bucket}/runs"
        paths = ["/".join(p for p in (runs, self.args.name, run.name) if p) for run in self.runs]
        list_it = ("gcloud", "storage", "ls")
        return [Command((*list_it, f"{path}/finished"), "Is it finished?") for path in paths]

    def install(self) -> list[Command]:
        args, tree = self.args, f"pkpo_jax-{self.commit}"
        source, archive = args.bucket or args.nfs, f"{commands.PACKED}/{tree}.tar.gz"
        packages = f"{args.shared_dir}/runs/{args.name}/packages.txt"
        set_up = [self.commit, args.extras, source, args.shared_dir, packages]
        script = (
            f"tar -xzf {tree}.tar.gz && ln -sfn {tree} pkpo_jax && "
            f"bash {WORKER} set_up {shlex.join(set_up)}"
        )
        pack = ("git", "archive", "--format=tar.gz", f"--prefix={tree}/", f"--output={archive}")
        copy = ("tpu-vm", "scp", archive, f"{self.name}:", "--worker=all")
        return [
            Command((*pack, self.commit), "Pack the commit."),
            self._gcloud(
                *copy, "--strict-host-key-checking=no", "--quiet", why="Copy it to every worker."
            ),
            self.ssh(script, "Mount what they share, and install, on every worker."),
        ]

    def _arguments(self) -> list[str]:
        """Returns the arguments of the trainer, with -- between the runs."""
        words: list[str] = []
        for run in self.runs:
            directory = f"{self.args.shared_dir}/runs"
            words += ["--"] * bool(words) + sweeps.trainer_arguments(self.args, run, directory)
        return words

    def start(self) -> Command:
        why = "Start on all workers. A run goes on from its newest checkpoint, if it has one."
        return self.ssh(f"bash {WORKER} start {shlex.join(self._arguments())}", why)

    def stop(self) -> Command:
        return self.ssh(f"bash {WORKER} stop", "End the trainers, which save first.")

    def status(self) -> Command:
        script = f"bash {WORKER} status"
        if self.commit:
            lines = "".join(f"{word}\n" for word in self._arguments())
            script += f" {self.commit} {hashlib.sha1(lines.encode()).hexdigest()[:8]}"
        return self.ssh(f"{script} || echo worker: not installed", "What do the workers do?")

    def logs(self, worker: str, lines: int) -> Command:
        return self.ssh(f"bash {WORKER} logs {lines}", "The last of the log.", worker)
