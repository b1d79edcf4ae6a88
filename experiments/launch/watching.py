"""Brings TPU slices from any state to running, and to the end of their runs."""

from __future__ import annotations

import collections
import contextlib
import re
import time
from collections.abc import Sequence

from experiments.launch import commands
from experiments.launch.commands import Command, LaunchError
from experiments.launch.slices import Slice

# States of a queued resource: https://cloud.google.com/tpu/docs/queued-resources
_QUEUED = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
_LEAVING = ("SUSPENDING", "DELETING")
# The machines are starting in these states; in any other state except READY they are lost.
_STARTING = ("CREATING", "STARTING", "RESTARTING", "REIMAGING", "REPAIRING")
# A failure that may be temporary is fatal after this many times, if the slice has not run since.
_TRIES = 5
# After these exit codes of the trainer, the same command would fail again, because the config
# cannot run or the run learns nothing.
_FINAL = (2, 3)


class Watched:
    """A slice that is advanced step by step, from any state to the end of its runs."""

    def __init__(self, it: Slice, shell: commands.Shell) -> None:
        self.it, self._shell = it, shell
        self._failures: collections.Counter[str] = collections.Counter()
        self._created = self._started = False

    def advance(self) -> str:
        """Takes the action that the state of the slice requires, and returns the state.

        Returns:
          "running", "finished", or another text that describes the state.

        Raises:
          LaunchError: the slice cannot continue.
        """
        state = self.look()
        if state in (*_QUEUED, *_LEAVING, "STARTING", "UNKNOWN"):
            return state
        if state == "ACTIVE":
            return self._advance_workers()
        if self._is_finished():
            self.delete(state)
            return "finished"
        if self.it.args.existing:
            raise LaunchError(f"the TPU VM is {state}; create it, or drop --existing.")
        reason = self._capture(self.it.reason())[1].strip() if state == "FAILED" else ""
        self.delete(state)
        if self._created and state == "FAILED":
            raise LaunchError(_with_advice(reason or "the request failed"))
        self.create()
        return "requested" if state == "NOT_FOUND" else f"{state}, requested again"

    def look(self) -> str:
        """Returns the state of the request or, once it is ACTIVE, that of the machines."""
        state = "ACTIVE" if self.it.args.existing else self._ask(self.it.state())
        if state != "ACTIVE":
            return state
        # A request can stay ACTIVE for some time after its machines were taken.
        machines = self._ask(self.it.machines())
        if machines == "NOT_FOUND" and not self.it.args.existing:
            return "LOST"
        return {"READY": "ACTIVE"}.get(machines, "STARTING" if machines in _STARTING else machines)

    def create(self) -> None:
        self._created = True
        code, said = self._capture(self.it.create())
        if code:
            # A refused request can still be in the queue, where it counts against the quota.
            if self._ask(self.it.state()) not in ("NOT_FOUND", "UNKNOWN"):
                self._shell.run(self.it.delete())
            raise LaunchError(_with_advice(said))

    def delete(self, state: str) -> None:
        if state != "NOT_FOUND" and not self.it.args.existing:
            self._shell.do(self.it.delete())

    def _advance_workers(self) -> str:
        code, said = self._capture(self.it.status())
        states = set(re.findall(r"^worker.*?: (.+)$", said, re.MULTILINE))
        if code or not states:
            return self._failed("ssh", said)
        if states == {"exit 0"}:
            return "finished"
        if states <= {"running", "exit 0"}:
            self._failures["ssh"] = self._failures["installing"] = 0
            return "running"
        if "running something else" in states:
            raise LaunchError("it runs something else; stop that first, or give another --name.")
        codes = {int(state.split()[1]) for state in states if state.startswith("exit")} - {0, 143}
        if self._started and codes.intersection(_FINAL):
            raise LaunchError(
                f"the trainer ended with exit code {min(codes)}, and would again; see its logs."
            )
        if codes:
            self._failed("the trainer", f"Exit codes: {codes}; see its logs.")
        if "running" in states and self._shell.run(self.it.stop()).returncode:
            return self._failed("ssh")
        if "not installed" in states:
            for command in self.it.install():
                if self._shell.run(command).returncode:
                    return self._failed("installing")
        if self._shell.run(self.it.start()).returncode:
            return self._failed("ssh")
        self._started = True
        return "starting"

    def _is_finished(self) -> bool:
        marks = self.it.finished_marks()
        return bool(marks) and not any(self._capture(mark)[0] for mark in marks)

    def _ask(self, command: Command) -> str:
        code, said = self._capture(command)
        if code and re.search("NOT_FOUND|not found", said):
            return "NOT_FOUND"
        if code or not said.strip():
            return self._failed("gcloud", said)
        self._failures["gcloud"] = 0
        return said.strip()

    def _capture(self, command: Command) -> tuple[int, str]:
        run = self._shell.run(command, capture=True)
        return run.returncode, run.stderr if run.returncode else run.stdout

    def _failed(self, what: str, said: str = "") -> str:
        """Counts a failure that may be temporary, so that it is not retried forever."""
        self._failures[what] += 1
        if self._failures[what] >= _TRIES:
            raise LaunchError(f"{what} failed {_TRIES} times. {said.strip()[-300:]}")
        return "UNKNOWN"


def _with_advice(said: str) -> str:
    """Returns the last line of an error from Google Cloud, or advice if it concerns a quota."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    named = [line for line in lines if re.search("quota", line, re.IGNORECASE)]
    if not named:
        return (lines or ["gcloud failed"])[-1]
    return (
        f"over quota: {named[0].removeprefix('ERROR: ')} Ask for more at "
        "https://console.cloud.google.com/iam-admin/quotas, or give another --zone, a smaller "
        "--accelerator, --spot (which has a quota of its own), or --one_slice for a sweep."
    )


def bring(watched: Sequence[Watched], until: Sequence[str], poll: float, *, clean: bool) -> None:
    """Brings each slice to one of the states `until`, or reports that it has failed.

    Args:
      poll: seconds between two queries of the states.
      clean: whether to delete the slices whose runs have finished or failed, because an idle slice
        costs money.

    Raises:
      LaunchError: some slices failed; the others are in one of the states.
    """
    pending, last, errors = list(watched), dict[str, str](), list[LaunchError]()
    while pending:
        for one in list(pending):
            name = one.it.name
            try:
                state = one.advance()
                if clean and state == "finished":
                    one.delete(one.look())
            except LaunchError as e:
                state = "failed"
                errors.append(LaunchError(f"{name}: {e}", e.code))
                if clean:
                    with contextlib.suppress(LaunchError):
                        one.delete(one.look())
            if last.get(name) != state:
                print(f"{time.strftime('%H:%M:%S')} {name}: {state}", flush=True)
            last[name] = state
            if state in (*until, "failed"):
                pending.remove(one)
        if pending:
            time.sleep(poll)
    if errors:
        raise LaunchError("; ".join(map(str, errors)), errors[0].code)
