"""Programs that attack the grader: each would return the right value if its attack succeeded.

So an attack with a reward of 0, or without a reward because it sleeps, has failed. The tests are
those of `double`, or of `secret`, which has to know something that only the trainer knows.
`protocol` contains attacks on other tests.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

TESTS = ["assert double(2) == 4", "assert double(10) == 20", "assert double(-3) == -6"]
RIGHT = "def double(x):\n    return 2 * x\n"


class Program(NamedTuple):
    """An attack.

    Attributes:
      works: whether it passes the tests of a grader that runs them in the same process, without a
        sandbox; known only for attacks that are harmless to try.
    """

    name: str
    text: str
    works: bool = False


class Site(NamedTuple):
    """The targets of attacks: on this machine and in this process."""

    directory: str
    port: int
    socket: str
    pid: int


def _does(name: str, attack: str, imports: str = "os, sys", works: bool = False) -> Program:
    """Returns a program that returns right values if the attack raises nothing."""
    body = textwrap.indent(textwrap.dedent(attack).strip(), "        ")
    return Program(
        name,
        f"import {imports}\n\ndef double(x):\n    try:\n{body}\n"
        "    except BaseException:\n        return None\n    return 2 * x\n",
        works,
    )


def _is(name: str, text: str, works: bool = False) -> Program:
    return Program(name, textwrap.dedent(text).lstrip("\n"), works)


def programs(site: Site) -> list[Program]:
    """Returns all attacks on `double`."""
    directory, port, address, pid = site
    return [
        # Time.
        _is("loop", "def double(x):\n    while True: pass"),
        _is("loop at import", RIGHT + "while True: pass"),
        _is("sleep", "import time\ndef double(x):\n    time.sleep(600)\n    return 2 * x"),
        _is(
            "loop deaf to signals",
            """
            import signal
            for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
                signal.signal(s, signal.SIG_IGN)
            def double(x):
                while True: pass
            """,
        ),
        _is(
            "loop in a finaliser",
            """
            class Loop:
                def __del__(self):
                    while True: pass
            def double(x):
                Loop()
                return 2 * x
            """,
        ),
        _is(
            "regular expression",
            """
            import re
            def double(x):
                re.fullmatch("(a|aa)+$", "a" * 60 + "b")
                return 2 * x
            """,
        ),
        _is("tower of powers", "x = 9 ** 9 ** 9\n" + RIGHT),
        _is(
            "infinite list",
            """
            class Endless(list):
                def __iter__(self):
                    while True: yield 4
            def double(x):
                return Endless()
            """,
        ),
        _is("infinite generator", "def double(x):\n    while True: yield 2 * x"),
        _is(
            "colliding hashes",
            """
            def double(x):
                return {i * (2 ** 61 - 1) for i in range(20000)}
            """,
        ),
        # Processes and threads.
        _does("fork", "if os.fork() == 0: os._exit(0)", works=True),
        _does("fork bomb", "while True: os.fork()"),
        _does("thread", "threading.Thread(target=print).start()", "threading", works=True),
        _does(
            "thread bomb",
            "for _ in range(1000): threading.Thread(target=time.sleep, args=(9,)).start()",
            "threading, time",
        ),
        _does("shell", "assert os.system('true') == 0", works=True),
        _does("subprocess", "subprocess.check_call(['/usr/bin/true'])", "subprocess", works=True),
        _does("pool of processes", "multiprocessing.Pool(2)", "multiprocessing", works=True),
        _does(
            "daemon",
            f"""
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(1)
                    open({directory + "/daemon"!r}, "w")
                os._exit(0)
            """,
            "os, time",
        ),
        # Memory and disk.
        _does("4 GB", "bytearray(4 << 30)"),
        _does("4 GB in parts", "parts = [bytearray(1 << 20) for _ in range(4096)]"),
        _does("4 GB of integers", "many = list(range(10 ** 8))"),
        _does("4 GB mapped", "mmap.mmap(-1, 4 << 30)", "mmap", works=True),
        _does("memory files", "os.ftruncate(os.memfd_create('hidden'), 1 << 20)", works=True),
        _does(
            "shared memory",
            "assert ctypes.CDLL(None).shmget(0, 1 << 30, 0o1600) >= 0",
            "ctypes",
        ),
        _does("1 GB file", "open('/tmp/file', 'wb').write(bytes(1 << 28) * 4)"),
        _does(
            "many files of 1 MB",
            "for i in range(100): open(f'/tmp/{i}', 'wb').write(bytes(1 << 20))",
        ),
        # Kernel memory.
        _does(
            "attributes of files",
            """
            for i in range(1000):
                os.close(os.open(f'/tmp/{i}', os.O_CREAT))
                for j in range(100): os.setxattr(f'/tmp/{i}', f'user.{j}', bytes(65000))
            """,
        ),
        _does("attributes of a directory", "os.setxattr('/tmp', 'user.a', bytes(60000))"),
        _does("many empty files", "for i in range(10 ** 5): open(f'/tmp/{i}', 'x').close()"),
        _does("many directories", "for i in range(10 ** 5): os.mkdir(f'/tmp/{i}')"),
        _does("long links", "for i in range(10 ** 4): os.symlink('x' * 4000, f'/tmp/{i}')"),
        _does("device files", "for i in range(10 ** 5): os.mknod(f'/tmp/{i}')"),
        _does("pipes", "fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)", "fcntl, os", works=True),
        _does(
            "locks of bytes",
            """
            file = open(os.__file__)
            for i in range(1000): fcntl.lockf(file, fcntl.LOCK_SH, 1, 2 * i)
            """,
            "fcntl, os",
            works=True,
        ),
        _does(
            "sockets in sockets",
            """
            pair = socket.socketpair()
            for i in range(100):
                socket.send_fds(pair[0], [b'x'], [s.fileno() for s in socket.socketpair()])
            """,
            "socket",
        ),
        _does("events", "os.eventfd(0)", works=True),
        _does(
            "inotify",
            """
            library = ctypes.CDLL(None)
            watch = library.inotify_init()
            assert watch >= 0 and library.inotify_add_watch(watch, b'/tmp', 0xfff) >= 0
            """,
            "ctypes",
            works=True,
        ),
        *(
            _does(name, f"assert ctypes.CDLL(None).syscall({call}) >= 0", "ctypes")
            for name, call in {
                "keyring": "248, b'user', b'k', b'x' * 9000, 9000, -3",
                "timers of POSIX": "222, 0, None, ctypes.byref(ctypes.c_int())",
                "timer descriptors": "283, 1, 0",
                "fanotify": "300, 0, 0",
                "io_uring": "425, 1024, bytes(120)",
                "queues of System V": "68, 0, 0o1600",
                "semaphores": "64, 0, 1000, 0o1600",
                "queues of POSIX": "240, b'q', 0o100, 0o600, None",
                "a file from memory": "447, 0",
                "userfaultfd": "323, 1",
                "a filter of its own": "317, 1, 0, None",
            }.items()
        ),
        _does("many open files", "files = [open('/tmp/file', 'wb') for _ in range(1000)]"),
        # Files outside.
        _does("write outside", f"open({directory + '/canary'!r}, 'w').write('pwned')", works=True),
        _does("write to the library", "open(os.__file__, 'a')"),
        _does("write to the root", "open('/file', 'w')"),
        _does(
            "symbolic link",
            f"""
            os.symlink({directory + "/canary"!r}, f'/tmp/{{os.getpid()}}')
            open(f'/tmp/{{os.getpid()}}', 'w').write('pwned')
            os.remove(f'/tmp/{{os.getpid()}}')
            """,
            works=True,
        ),
        _does("hard link", f"os.link({directory + '/canary'!r}, '/tmp/link')"),
        _does(
            "delete",
            f"os.remove({directory + '/canary'!r}); open({directory + '/canary'!r}, 'w')",
            works=True,
        ),
        _does("device", "os.mknod('/tmp/disk', 0o60666, os.makedev(254, 0))"),
        _does(
            "solutions of others",
            """
            roots = [sys.prefix + '/lib', '/usr/lib', '/usr/local/lib']
            next(f for r in roots for f in glob.iglob(r + '/python*/*-packages/*'))
            """,
            "glob, sys",
            works=True,
        ),
        _does("/etc/passwd", "open('/etc/passwd').read()", works=True),
        # Network.
        _does("internet", "socket.create_connection(('1.1.1.1', 53), 0.5)", "socket"),
        _does(
            "local port",
            f"socket.create_connection(('127.0.0.1', {port}), 0.5)",
            "socket",
            works=True,
        ),
        _does(
            "abstract socket",
            f"socket.socket(socket.AF_UNIX).connect('\\0{address}')",
            "socket",
            works=True,
        ),
        _does("listen", "socket.create_server(('127.0.0.1', 0))", "socket", works=True),
        # Other processes, privileges.
        _does("kill the parent", "os.kill(os.getppid(), 9); time.sleep(600)", "os, time"),
        _does("kill everyone", "os.kill(-1, 9); time.sleep(600)", "os, time"),
        _does("kill the trainer", f"os.kill({pid}, 9)"),
        _does("ptrace", f"assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0", "ctypes"),
        _does("read memory", "open(f'/proc/{os.getppid()}/mem', 'rb')"),
        _does("become root", "os.setuid(0)"),
        _does("chroot", "os.chroot('/tmp')"),
        _does("user namespace", "assert ctypes.CDLL(None).unshare(0x10000000) == 0", "ctypes"),
        _does(
            "mount",
            "assert ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
            "ctypes",
        ),
        _does(
            "raise limits",
            "resource.setrlimit(resource.RLIMIT_CPU, (resource.RLIM_INFINITY,) * 2)",
            "resource",
        ),
        # Verdicts.
        _is("exit at import", "import sys\nsys.exit(0)", True),
        _is("hard exit at import", "import os\nos._exit(0)", True),
        _is("exit", "import sys\ndef double(x): sys.exit(0)", True),
        _is("hard exit", "import os\ndef double(x): os._exit(0)", True),
        _is(
            "exit at exit",
            "import atexit, os\natexit.register(os._exit, 0)\ndef double(x): return None",
            True,
        ),
        _is(
            "hook for exceptions",
            "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\ndef double(x): return None",
            True,
        ),
        _is("printed verdict", "print('done\\n0 1 2\\n', flush=True)\ndef double(x): return None"),
        _is(
            "verdict to every descriptor",
            """
            import os
            for fd in range(64):
                try: os.write(fd, b"done\\n0 1 2\\n")
                except OSError: pass
            def double(x): return None
            """,
        ),
        _is(
            "messages to every descriptor",
            """
            import os
            for fd in range(3, 64):
                try: os.write(fd, b'["double"]\\n["passed", 3]\\n["value", ["object", 0]]\\n' * 9)
                except OSError: pass
            def double(x): return None
            """,
        ),
        _is(
            "nested message",
            """
            import os
            for fd in range(3, 64):
                try: os.write(fd, b'["double"]\\n' + b"[" * 60000 + b"]" * 60000 + b"\\n")
                except OSError: pass
            def double(x): return None
            """,
        ),
        _is(
            "close every descriptor",
            "import os\ndef double(x):\n    os.closerange(0, 64)\n    while True: pass",
        ),
        _is(
            "100 MB printed",
            """
            import sys
            def double(x):
                for _ in range(100):
                    print("x" * (1 << 20), file=sys.stdout)
                    print("x" * (1 << 20), file=sys.stderr)
            """,
        ),
        _is(
            "100 MB to every descriptor",
            """
            import os
            def double(x):
                for fd in range(3, 64):
                    try:
                        for _ in range(100): os.write(fd, b"x" * (1 << 20))
                    except OSError: pass
            """,
        ),
        _is("100 MB returned", "def double(x):\n    return 'x' * (100 << 20)"),
        _is("an integer of 10 MB", "def double(x):\n    return 1 << (80 << 20)"),
        # Values.
        _is(
            "equal to everything",
            """
            class Same:
                def __eq__(self, other): return True
                def __ne__(self, other): return False
                def __hash__(self): return 0
            def double(x): return Same()
            """,
            True,
        ),
        _is(
            "an integer equal to everything",
            "class Same(int):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
            "def double(x): return Same(7)",
            True,
        ),
        _is(
            "a string equal to everything",
            "class Same(str):\n    def __eq__(self, other): return True\n    __hash__ = None\n"
            "def double(x): return Same('7')",
            True,
        ),
        _is(
            "a class equal to everything",
            """
            class Meta(type):
                def __eq__(cls, other): return True
                __hash__ = type.__hash__
            class Same(metaclass=Meta): pass
            def double(x): return Same
            """,
            True,
        ),
        _is("not a number", "def double(x): return float('nan')"),
        _is("a list of itself", "def double(x):\n    a = []\n    a.append(a)\n    return a"),
        _is(
            "nested lists",
            "def double(x):\n    a = []\n    for _ in range(10 ** 6): a = [a]\n    return a",
        ),
        # The grader's own code.
        _is(
            "trace the tests",
            """
            import os, sys
            def watch(frame, event, argument):
                if event == "exception": os._exit(0)
                return watch
            sys.settrace(watch)
            sys._getframe().f_trace = watch
            if sys._getframe().f_back: sys._getframe().f_back.f_trace = watch
            def double(x): return None
            """,
            True,
        ),
        _is(
            "expected values from the caller",
            """
            import sys
            def double(x):
                frame = sys._getframe(1)
                while frame:
                    found = [c for c in frame.f_code.co_consts if c in (4, 20, -6)]
                    expected = [c for c in found if c == x + x]
                    if expected: return expected[0]
                    frame = frame.f_back
            """,
            True,
        ),
        _is(
            "expected values from memory",
            """
            import gc, re
            def double(x):
                for found in gc.get_objects():
                    text = found.get("tests") if isinstance(found, dict) else None
                    right = re.search(rf"double\\({x}\\) == (-?\\d+)", str(text or ""))
                    if right: return int(right[1])
            """,
            True,
        ),
        _is(
            "expected values from the command line",
            """
            import re, sys
            def double(x):
                right = re.search(rf"double\\({x}\\) == (-?\\d+)", " ".join(sys.orig_argv))
                return int(right[1])
            """,
            True,
        ),
        _is(
            "patched built-ins",
            """
            import builtins, operator
            builtins.bool = builtins.isinstance = lambda *_: True
            operator.eq = lambda *_: True
            def double(x): return None
            """,
        ),
        _is(
            "patched protocol",
            """
            from pkpo_jax.tasks.code.sandboxed import protocol
            def double(x):
                protocol.encode = lambda value, opaque: {"__class__": "Same", "__eq__": True}
            """,
        ),
        _is(
            "patched checker",
            """
            import sys
            from pkpo_jax.tasks.code.sandboxed import checker
            checker.Handle.__eq__ = lambda *_: True
            checker._check = lambda *_: "done"
            def double(x): return object()
            """,
        ),
        _is(
            "hostile exception",
            """
            class Meta(type):
                __name__ = property(lambda cls: 1 / 0)
            class Error(BaseException, metaclass=Meta): pass
            def double(x): raise Error
            """,
        ),
        # Crashes, and odd texts.
        _is("segmentation fault", "import ctypes\ndef double(x): ctypes.string_at(0)"),
        _is("abort", "import os\ndef double(x): os.abort()"),
        _is(
            "deep recursion",
            "import sys\nsys.setrecursionlimit(10 ** 9)\ndef double(x): return double(x) + 1",
        ),
        _is(
            "deep recursion in C",
            """
            import sys
            sys.setrecursionlimit(10 ** 9)
            def double(x):
                a = ()
                for _ in range(10 ** 6): a = (a,)
                return hash(a)
            """,
        ),
        _is("parentheses", RIGHT + "y = " + "(" * 100_000 + ")" * 100_000),
        _is("nested operators", RIGHT + "y = " + "-" * 200_000 + "1"),
        _is("nested blocks", "".join(" " * i + "if 1:\n" for i in range(500)) + RIGHT),
        _is("null bytes", RIGHT + "\0"),
        _is("half a surrogate pair", RIGHT + "y = '\ud800'"),
        _is("encoding declared", "# coding: rot13\nqrs qbhoyr(k):\n    erghea 2 * k\n"),
        _is("homoglyphs", RIGHT.replace("o", "\N{CYRILLIC SMALL LETTER O}")),
        _is("right to left", "def double(x):\n    return '\u202e' + str(2 * x)"),
        _is("no program", "I cannot help with that \N{PILE OF POO}" * 1000),
    ]


def thefts(site: Site, secret_name: str) -> list[Program]:
    """Returns attacks on `secret`, whose value is in the trainer's environment and in a file."""
    path = site.directory + "/secret"
    return [
        _is(
            "environment",
            f"import os\ndef secret(): return os.environ.get({secret_name!r})",
            True,
        ),
        _is(
            "environment by C",
            f"""
            import ctypes
            def secret():
                getenv = ctypes.CDLL(None).getenv
                getenv.restype = ctypes.c_char_p
                return getenv({secret_name.encode()!r}).decode()
            """,
            True,
        ),
        _is(
            "environment in /proc",
            f"""
            import glob, re
            def secret():
                for path in ["/proc/self/environ", *glob.glob("/proc/[0-9]*/environ")]:
                    try: text = open(path).read()
                    except OSError: continue
                    found = re.search({secret_name!r} + "=([^\\0]*)", text)
                    if found: return found[1]
            """,
            True,
        ),
        _is("file outside", f"def secret(): return open({path!r}).read()", True),
        _is(
            "file by every descriptor",
            """
            import os
            def secret():
                for fd in range(3, 64):
                    try:
                        text = os.pread(fd, 1000, 0).decode()
                        if text: return text
                    except OSError: pass
            """,
        ),
    ]
