"""Reports what the sandbox should prevent but allows."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

from pkpo_jax.tasks.code.sandboxed import lockdown


def main(job_fd: int) -> None:
    """Reports a line for each failure of the sandbox, and then "probed"."""
    job = lockdown.start(job_fd)
    failures = [name for name, attempt in ATTEMPTS.items() if _succeeds(attempt)]
    if set(os.environ) - {"PWD", "LC_CTYPE", "PYTHONHASHSEED"}:
        failures.append("the environment is visible")
    if [fd for fd in range(256) if _succeeds(lambda fd=fd: os.fstat(fd))] != [
        0,
        1,
        2,
        job["report"],
    ]:
        failures.append("descriptors are inherited")
    if left := _unexpected("/", set(job["visible"])):
        failures.append(f"{left} is visible")
    if any(os.listdir(path) for path in job["hidden"]):
        failures.append("packages are visible")
    if os.getpid() > 9:
        failures.append("processes of the system are visible")
    for name, value in job["limits"].items():
        if resource.getrlimit(getattr(resource, name)) != (value, value):
            failures.append(f"{name} is not set")
    os.write(job["report"], "\n".join([*failures, "probed"]).encode())


def _unexpected(directory: str, expected: set[str]) -> str:
    """Returns a path that is neither expected nor leads to an expected path, or ""."""
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if path in expected:
            continue
        if path != "/tmp" and not any(e.startswith(path + "/") for e in expected):
            return path
        if left := _unexpected(path, expected):
            return left
    return ""


def _succeeds(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except (OSError, ValueError, MemoryError):
        return False
    return True


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))


def _connect() -> None:
    # This sends no packet; it only asks for a route.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))


def _lock() -> None:
    with open(os.__file__) as file:
        fcntl.lockf(file, fcntl.LOCK_SH, 1)


def _call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library; raises OSError if it fails."""
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)


ATTEMPTS: dict[str, Callable[[], Any]] = {
    "processes can be started": _fork,
    "there is a network": _connect,
    "files can be written": lambda: _write("/written"),
    "files can be written in /tmp": lambda: _write("/tmp/written"),
    "the standard library can be written": lambda: _write(os.__file__),
    "it has the capabilities of root": lambda: os.chroot("/"),
    "it can become root": lambda: os.setuid(0),
    "it can become a group of root's": lambda: os.setgid(0),
    "limits can be raised": lambda: resource.setrlimit(resource.RLIMIT_CPU, (1 << 20, 1 << 20)),
    "memory has no limit": lambda: mmap.mmap(-1, 1 << 32),
    # In these cases the kernel allocates memory for a program that no limit counts.
    "files take attributes": lambda: os.setxattr("/tmp", "user.probe", b"x"),
    "files can be locked": _lock,
    "pipes can be made": os.pipe,
    "memory files can be made": lambda: os.memfd_create("probe"),
    "events can be made": lambda: os.eventfd(0),
    "files can be watched": lambda: _call("inotify_init"),
    "shared memory can be made": lambda: _call("shmget", 0, 4096, 0o1600),
    "semaphores can be made": lambda: _call("semget", 0, 1, 0o1600),
    "queues can be made": lambda: _call("msgget", 0, 0o1600),
    "timers can be made": lambda: _call("timerfd_create", 1, 0),
    "memory can be spliced": lambda: _call("splice", 0, None, 0, None, 0, 0),
}
