"""The system calls that a sandboxed program may make, as a seccomp filter.

This is a list of allowed calls, so that a call nobody thought of is refused. It contains the calls
that Python needs to compute, to read files, and to run asyncio. It contains no call that starts
processes or threads, reaches other processes, opens sockets to the outside, or writes files. Nor
does it contain calls that allocate kernel memory which no limit counts: extended attributes, pipes,
memory files, inotify, keys, timers, file locks, System V and POSIX queues, io_uring. The limit on
open files bounds the kernel memory of the remaining calls.
"""

from __future__ import annotations

import errno
import functools
import platform
import struct

# The audit number of each architecture, and its column in the table of calls.
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Each call has its numbers on x86_64 and aarch64; None if the architecture lacks the call.
_CALLS: dict[str, tuple[int, int | None]] = {
    # File calls are harmless, since every mount is read-only.
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67),
    "pwrite64": (18, 68), "lseek": (8, 62), "open": (2, None), "openat": (257, 56),
    "close": (3, 57), "close_range": (436, 436), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "newfstatat": (262, 79), "statx": (332, 291), "access": (21, None),
    "faccessat": (269, 48), "faccessat2": (439, 439), "readlink": (89, None),
    "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17), "chdir": (80, 49),
    "fchdir": (81, 50), "statfs": (137, 43), "fstatfs": (138, 44), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "ioctl": (16, 29), "umask": (95, 166),
    "fadvise64": (221, 223),
    # RLIMIT_AS counts the memory of these calls.
    "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "mremap": (25, 216),
    "brk": (12, 214), "madvise": (28, 233),
    # These handle signals, start and end: bubblewrap starts Python and waits for it while filtered.
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "rt_sigsuspend": (130, 133), "rt_sigtimedwait": (128, 137),
    "sigaltstack": (131, 132), "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131),
    "pause": (34, None), "restart_syscall": (219, 128), "exit": (60, 93), "exit_group": (231, 94),
    "execve": (59, 221), "wait4": (61, 260), "waitid": (247, 95),
    # Time.
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153),
    "alarm": (37, None), "setitimer": (38, 103), "getitimer": (36, 102), "getrusage": (98, 165),
    "select": (23, None), "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73),
    # These read or change the process itself; `sandboxed.lockdown` needs the last six.
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148),
    "getresgid": (120, 150), "getgroups": (115, 158), "getpgrp": (111, None),
    "getpgid": (121, 155), "getsid": (124, 156), "uname": (63, 160), "sysinfo": (99, 179),
    "getrandom": (318, 278), "getcpu": (309, 168), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getpriority": (140, 141), "getrlimit": (97, 163),
    "setrlimit": (160, 164), "prlimit64": (302, 261), "setgroups": (116, 159),
    "setresuid": (117, 147), "setresgid": (119, 149),
    # The C library calls these.
    "arch_prctl": (158, None), "set_tid_address": (218, 96), "set_robust_list": (273, 99),
    "get_robust_list": (274, 100), "rseq": (334, 293), "futex": (202, 98),
    "membarrier": (324, 283),
    # asyncio wakes itself through a pair of sockets, without messages that carry descriptors.
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None),
    "epoll_pwait": (281, 22), "sendto": (44, 206), "recvfrom": (45, 207),
    "getsockname": (51, 204), "shutdown": (48, 210),
}  # fmt: skip
# These calls are allowed for some values of one argument: each has its numbers, the argument's
# index and the values. fcntl may duplicate descriptors and read or set their flags, but lock
# nothing; 1 is AF_UNIX.
_CALLS_FOR: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),
    "socketpair": ((53, 199), 0, (1,)),
}
# Calls from this number on fail as on an older kernel, so that newer C libraries do without them.
_NEWER = 440
_LOAD, _EQUAL, _AT_LEAST, _JUMP, _GIVE = 0x20, 0x15, 0x35, 0x05, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000


def allowed(machine: str) -> set[int]:
    """Returns the numbers of the calls that are allowed with any arguments."""
    column = ARCHITECTURES[machine][1]
    numbers = (call[column] for call in _CALLS.values())
    return {number for number in numbers if number is not None}


@functools.cache
def seccomp_filter() -> bytes:
    """Returns the BPF program: all other calls and all calls of other ABIs fail with EPERM."""
    audit, column = ARCHITECTURES[platform.machine()]
    # A jump names "allow", "refuse" or "newer", or is a number of instructions.
    program: list[tuple[int, str | int, str | int, str | int]] = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 0, "refuse", audit),
        (_LOAD, 0, 0, 0),
        # The x32 ABI has different numbers for the same calls.
        (_AT_LEAST, "refuse", 0, 0x40000000),
        *((_EQUAL, "allow", 0, number) for number in sorted(allowed(platform.machine()))),
    ]
    for numbers, argument, values in _CALLS_FOR.values():
        program.append((_EQUAL, 0, len(values) + 2, numbers[column]))
        # Only the lower half of the argument counts, for these arguments are ints.
        program.append((_LOAD, 0, 0, 16 + 8 * argument))
        program += [(_EQUAL, "allow", 0, value) for value in values]
        program.append((_JUMP, 0, 0, "refuse"))
    program.append((_AT_LEAST, "newer", "refuse", _NEWER))
    ends = {"refuse": _ERROR | errno.EPERM, "allow": _ALLOW, "newer": _ERROR | errno.ENOSYS}
    labels = {name: len(program) + i for i, name in enumerate(ends)}
    program += [(_GIVE, 0, 0, result) for result in ends.values()]

    def resolve(at: int, operand: str | int) -> int:
        return labels[operand] - at - 1 if isinstance(operand, str) else operand

    return b"".join(
        struct.pack("HBBI", code, *(resolve(at, operand) for operand in operands))
        for at, (code, *operands) in enumerate(program)
    )
