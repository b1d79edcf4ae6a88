"""Tests of the exchange between tests and answer: values, objects, exceptions, changes, calls."""

import os

import pytest

from pkpo_jax.tasks import Status
from pkpo_jax.tasks.code import Code, task, traits
from pkpo_jax.tasks.code import problems as code_problems
from tests.tasks.test_code import BARE, grade, needs_sandbox, problem

OK, WRONG_FORMAT, TIMEOUT, ERROR = Status

VALUES = [
    "None", "True", "7", "2 ** 100", "-1.5", "float('inf')", "2j", "'a\\ud800'", "b'\\0'", "int",
    "[1, [2]]", "(1, (2,))", "{1, 2}", "frozenset({1})", "{'a': {1: (2, 3)}}", "{(1, 2): None}",
    "Fraction(1, 3)", "Decimal('1.10')", "datetime.date(2020, 1, 2)", "range(1, 9, 2)",
    "datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.timezone.utc)", "datetime.timedelta(1, 2, 3)",
    "bytearray(b'a')", "collections.deque([1, [2]], 3)", "collections.Counter('aab')",
    "collections.OrderedDict([(2, 1), (1, 2)])", "collections.defaultdict(list, {1: [2]})",
    "array.array('i', [1, 2])", "slice(1, None)", "{1: 2}.keys()", "Fraction", "KeyError", "...",
    "uuid.UUID(int=5)", "pathlib.PurePosixPath('/a/b')", "ipaddress.ip_address('1.2.3.4')",
    "collections.UserList([1, [2]])", "collections.UserDict({1: [2]})",
    "collections.UserString('a')", "types.MappingProxyType({1: 2})",
    "pathlib.PureWindowsPath('c:/a')",
    "urllib.parse.urlparse('http://a.b:80/c')", "urllib.parse.urlsplit('http://a.b:80/c')",
    "time.gmtime(0)", "collections.ChainMap({1: 2}, {3: 4})", "ipaddress.ip_interface('::1/64')",
]  # fmt: skip


@needs_sandbox
def test_values_pass_both_ways():
    tests = [f"assert same({v}) == {v} and type(same({v})) == type({v})" for v in VALUES]
    imports = [
        "import array, collections, datetime, ipaddress, pathlib, time, types, urllib.parse, uuid",
        "from fractions import Fraction",
    ]
    imports.append("from decimal import Decimal")
    tests.append("assert same(x=1) == 1")
    tests.append("assert same(urllib.parse.urlparse('http://a.b:80/c')).hostname == 'a.b'")
    tests.append("assert same(collections.UserList([1])) == [1]")
    tests.append("assert same(types.MappingProxyType({1: 2})) == {1: 2} == same({1: 2})")
    assert grade("def same(x): return x", *tests, test_imports=imports).reward == 1.0


@needs_sandbox
@pytest.mark.skipif(not os.path.exists("/usr/share/zoneinfo/UTC"), reason="no time zones here")
def test_time_zones_are_known():
    code = "import datetime, zoneinfo\ndef f(zone):\n    zone = zoneinfo.ZoneInfo(zone)\n"
    code += "    return datetime.datetime(2020, 7, 1, tzinfo=zone).utcoffset()"
    tests = ["assert f('UTC') == timedelta()", "assert f('Europe/Paris') == timedelta(hours=2)"]
    assert grade(code, *tests, test_imports=["from datetime import timedelta"]).reward == 1


@needs_sandbox
def test_objects_stay_with_the_answer():
    # MBPP's problems 367, 601 and 927 do this.
    code = """
class Node:
    def __init__(self, data):
        self.data, self.left, self.right = data, None, None
    def leaves(self):
        yield self.data
    def __len__(self):
        return 5
    def __getitem__(self, i):
        return 10 * i
def depth(node):
    return 1 + max(depth(node.left), depth(node.right)) if isinstance(node, Node) else 0
def count(n):
    yield from range(n)
def nodes():
    return [Node(i) for i in range(3)]
"""
    tests = [
        "assert depth(root) == 3 and depth(root.left) == 2",
        "assert depth(Node(1)) == 1",
        "assert root.left.left.data == 3",
        "assert root == root and root != root.left and root.left == root.left",
        "assert list(root.leaves()) == [1] and next(root.leaves()) == 1",
        "assert list(count(3)) == [0, 1, 2] and max(count(9)) == 8",
        "assert [n.data for n in nodes()] == [0, 1, 2]",
        "assert len(root) == 5 and root[3] == 30 and root",
        "assert not hasattr(root, 'nothing')",
        "assert type(root) != int and not isinstance(root, dict)",
    ]
    setup = "root = Node(1)\r\nroot.left = Node(2)\r\nroot.left.left = Node(3)"
    assert problem(code, *tests)["names"] == ["Node", "count", "depth", "nodes"]
    assert grade(code, *tests, test_setup_code=setup).reward == 1.0


@needs_sandbox
def test_data_of_the_answer_are_compared():
    code = "N = 3\nSEEN = []\nF = lambda: N\ndef f():\n    global N\n    SEEN.append(N)\n"
    code += "    N += 1\n    return SEEN"
    tests = [
        "assert N == 3 and SEEN == [] and F() == N",
        "f()\nassert N == 4 == F() and SEEN[0] == 3 and f() == SEEN == [3, 4]",
        "assert [n + N for n in SEEN] == [8, 9] and -N == -5 and SEEN * 2 == [3, 4, 3, 4]",
    ]
    exec("\n".join([code, *tests]), {})
    assert grade(code, *tests).reward == 1
    yes = "class Yes(int):\n    __eq__ = __ne__ = lambda self, other: True\nN = Yes(7)\n"
    assert grade("N = 3", "assert N == 3", answer=yes).reward == 0
    assert grade("N = 3", "assert N == 3", answer="def N(): return 3").reward == 0
    # A name that the tests set is theirs.
    assert grade("N = 3\ndef f(): return 4", "N = 4\nassert f() == N").reward == 1
    inner = "g = lambda N: N\nassert f() == g(4)"
    assert grade("N = 3\ndef f(): return N + 1", inner).reward == 1


@needs_sandbox
def test_exceptions_keep_their_kind():
    code = "class Own(Exception): pass\ndef f(x): raise {'v': ValueError, 'o': Own}[x]"
    test = "try:\n    f({!r})\nexcept {}:\n    caught = 1\nassert caught == 1"
    tests = [test.format(*c) for c in (("v", "ValueError"), ("o", "Exception"), ("", "KeyError"))]
    assert grade(code, *tests).reward == 1.0
    # Some constructors of exceptions take other arguments than the exceptions hold.
    code = (
        "import json\nclass Own(ValueError):\n    def __init__(self, a, b): super().__init__(a)\n"
    )
    code += "def f(x):\n    if not x: raise Own(1, 2)\n    return json.loads(x)"
    tests = [test.format(*c) for c in (("{", "json.JSONDecodeError"), ("{", "ValueError"))]
    tests += [test.format("", "ValueError"), test.format("", "Own")]
    assert grade(code, *tests, test_imports=["import json"]).reward == 1.0
    wrong = code.replace("return json.loads(x)", "raise KeyError")
    assert grade(code, tests[1], answer=wrong, test_imports=["import json"]).reward == 0
    # An answer catches an exception of the tests as the first of its classes that is Python's own.
    code = "def f(g):\n    try: g()\n    except ValueError: return 1"
    raising = "class Own(ValueError): pass\ndef g(): raise {}\nassert f(g) == 1"
    errors = ["Own('a')", "UnicodeDecodeError('a', b'', 0, 1, 'b')", "ValueError"]
    assert grade(code, *(raising.format(e) for e in errors)).reward == 1.0


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("class E(ValueError): pass\ndef f(): raise E('a', 2)", "e.args == ('a', 2)"),
        (
            "class E(Exception):\n    def __str__(self): return 'so'\ndef f(): raise E",
            "str(e) == 'so'",
        ),
        (
            "class E(Exception):\n    def __init__(self, n): self.n = n\ndef f(): raise E(7)",
            "e.n == 7",
        ),
        ("class E(Exception): pass\nclass F(E): pass\ndef f(): raise F", "isinstance(e, E)"),
        (
            "class E(KeyError): pass\ndef f(): raise E",
            "isinstance(e, E) and isinstance(e, KeyError)",
        ),
        ("E = ValueError\ndef f(): raise ValueError('a')", "str(e) == 'a'"),
        ("import json\nE = json.JSONDecodeError\ndef f(): json.loads('{')", "e.pos == 1"),
    ],
)
def test_own_exceptions_are_caught(code, test):
    test = f"got = None\ntry:\n    f()\nexcept E as e:\n    got = {test}\nassert got"
    exec(f"{code}\n{test}", {})
    if "json" in test or "JSON" in code:
        # The class is the library's, so the test does not rely on its attribute.
        test = test.replace("e.pos == 1", "True")
    assert grade(code, test).reward == 1.0


@needs_sandbox
def test_no_exception_ends_a_loop_of_the_tests():
    tests = [
        "assert all(map(lambda c: f(c) == 2 * c, [1, 2]))",
        "assert not any(map(lambda c: f(c) != 2 * c, [1, 2]))",
        "assert not list(filter(lambda c: f(c) != 2 * c, [1, 2]))",
        "assert all(map(lambda c: next(g(c)) == c, [1, 2]))",
        "assert all(f(c) == 2 * c for c in [1, 2])",
        "def check():\n    yield f(1) == 2\nassert all(check())",
        "ok = True\nfor c in [1, 2]:\n    ok = ok and f(c) == 2 * c\nassert ok",
    ]
    right = "def f(x): return 2 * x\ndef g(x): yield x"
    assert grade(right, *tests).reward == 1
    errors = ["StopIteration", "StopAsyncIteration", "GeneratorExit", "KeyboardInterrupt"]
    errors += ["SystemExit", "Own", "Base", "Named()"]
    own = "class Own(StopIteration): pass\nclass Base(BaseException): pass\n"
    own += "class Named(Exception):\n    __class__ = property(lambda self: StopIteration)\n"
    own += "Named.__name__ = 'StopIteration'\n"
    for error in errors:
        answer = own + f"def f(x): raise {error}\ndef g(x): return iter(())"
        assert grade(right, *tests, answer=answer).reward == 0, error
    # An answer's iterator ends an iteration only where the tests ask for its next value.
    test = "it = g(1)\nassert next(it) == 1\nassert next(it, 7) == 7\n"
    test += "try:\n    next(it)\nexcept StopIteration:\n    ok = 1\nassert ok"
    assert grade(right, test).reward == 1
    # Tests that catch everything also catch the end of an answer's process; it passes no test.
    catch = "try:\n    f(1)\nexcept:\n    pass\nassert True == True"
    assert grade(right, catch, answer="import os\ndef f(x): os._exit(0)") == (0.0, ERROR)


VECTOR = """
import functools
@functools.total_ordering
class V:
    def __init__(self, x, y=0): self.x, self.y = x, y
    def __eq__(self, o): return (self.x, self.y) == ((o.x, o.y) if isinstance(o, V) else (o, 0))
    def __lt__(self, o): return (self.x, self.y) < (o.x, o.y)
    def __hash__(self): return hash((self.x, self.y))
    def __add__(self, o): return V(self.x + (o.x if isinstance(o, V) else o), self.y)
    __radd__ = __add__
    def __iadd__(self, o): self.x += o; return self
    def __neg__(self): return V(-self.x, -self.y)
    def __abs__(self): return abs(self.x) + abs(self.y)
    def __repr__(self): return f"V({self.x}, {self.y})"
    def __format__(self, how): return f"{self.x:{how}}"
    def __len__(self): return 2
    def __bool__(self): return self.x != 0
    def __getitem__(self, i): return (self.x, self.y)[i]
    def __setitem__(self, i, value): setattr(self, "xy"[i], value)
    def __contains__(self, x): return x in (self.x, self.y)
    def __iter__(self): yield from (self.x, self.y)
    def __float__(self): return float(self.x)
    def __call__(self, x): return self.x * x
    def count(self, x): return [self.x, self.y].count(x)
    def apply(self, f): return V(f(self.x), f(self.y))
    def __enter__(self): return self
    def __exit__(self, *e): pass
    @classmethod
    def unit(cls): return cls(1)
def origin(): return V(0)
def one(): return [V(1)]
"""


@needs_sandbox
@pytest.mark.parametrize(
    "test",
    [
        "V(1, 2) == V(1, 2) and V(1) != V(2) and V(1) == 1 and not V(1) == 2",
        "V(1) < V(2) <= V(2) and max(V(1), V(3)) == V(3) and sorted([V(2), V(1)])[0] == V(1)",
        "V(1) + V(2) == V(3) and V(1) + 2 == V(3) and sum([V(1), V(2)]) == V(3) and -V(1) == V(-1)",
        "str(V(1)) == repr(V(1)) == f'{V(1)}'.replace('1', 'V(1, 0)', 1) or f'{V(1):03d}' == '001'",
        "abs(V(-1, 2)) == 3 and len(V(1)) == 2 and float(V(3)) == 3.0 and V(2)(4) == 8",
        "bool(V(1)) and not V(0) and V(1, 5)[1] == 5 and 5 in V(1, 5) and 6 not in V(1, 5)",
        "list(V(1, 2)) == [1, 2] and tuple(reversed(V(1, 2))) == (2, 1) and V(1, 1).count(1) == 2",
        "len({V(1), V(1), V(2)}) == 2 and {V(1): 7}[V(1)] == 7 and V(1) in [V(2), V(1)]",
        "isinstance(V(1), V) and not isinstance(3, V) and origin() == V(0) and one()[0] == V(1)",
        "V.unit() == V(1) and V.unit().x == 1 and V(1).apply(lambda x: x + 1) == V(2, 1)",
    ],
)
def test_own_classes_are_compared(test):
    exec(f"{VECTOR}\nassert {test}", {})
    assert grade(VECTOR, f"assert {test}", "assert origin() == one").reward == 0.5
    changed = "v = V(1)\nv += 2\nv[1] = 4\nwith v as w:\n    assert w == V(3, 4)"
    assert grade(VECTOR, changed).reward == 1.0


@needs_sandbox
@pytest.mark.parametrize(
    ("solution", "test"),
    [
        ("def f(): return 5", "f() == 5"),
        ("def f(): return 5", "5 == f()"),
        ("def f(): return 5", "f() in [5]"),
        ("def f(): return 5", "f() > 4 and f() < 6"),
        ("def f(): return 5", "not f() != 5"),
        ("def f(): return 5.0", "abs(f() - 5) < 1e-6"),
        ("def f(): return 5.0", "5 - f() == 0"),
        ("def f(): return [3]", "3 in f()"),
        ("def f(): return 'ab'", "f().startswith('a')"),
        ("def f(): return {1}", "f().issubset({1, 2})"),
        ("def f(): return {1}", "f() <= {1, 2} and f() | {2} == {1, 2}"),
        ("def f(): return [5]", "f()[0] == 5 and f() == [5]"),
        ("def f(): return 5", "isinstance(f(), int) and f() == 5"),
        ("def f(): return 5", "f() == f() and f() == 5"),
        ("def f(): return 5", "{5: 1}[f()] == 1"),
        ("def f(): return 5", "hash(f()) == 5 and {f()} == {5}"),
        ("from fractions import Fraction\ndef f(): return Fraction(1, 2)", "f() == Fraction(1, 2)"),
    ],
)  # fmt: skip
def test_an_object_that_agrees_to_everything_is_no_value(solution, test):
    agree = ["eq", "ne", "lt", "le", "gt", "ge", "contains", "instancecheck", "add", "radd"]
    agree += ["sub", "rsub", "or", "ror", "and", "rand", "xor"]
    methods = "".join(f"    def __{m}__(self, *a): return Yes()\n" for m in agree)
    answer = (
        "class Yes(int):\n" + methods + "    def __abs__(self): return Yes()\n"
        "    def __hash__(self): return 5\n"
        "    def __getattr__(self, name): return lambda *a: Yes()\n"
    )
    assert grade(solution, f"assert {test}").reward == 1
    lies = [
        answer.replace("(int)", "(object)") + "def f(): return Yes()",
        answer.replace("(int)", "(object)") + "class f(Yes): pass",
        answer.replace("(int)", "(object)") + "def f(): return [Yes(), Yes()]",
        answer + "def f(): return Yes(7)",
        "from fractions import Fraction\n"
        + answer.replace("(int)", "(Fraction)")
        + "def f(): return Yes(7)",
    ]
    assert [grade(solution, f"assert {test}", answer=lie).reward for lie in lies] == [0] * 5


@needs_sandbox
@pytest.mark.parametrize(
    ("made", "test"),
    [
        ("iter([])", "isinstance(f(), Iterator)"),
        ("iter([1])", "isinstance(f(), Iterable) and list(f()) == [1]"),
        ("len", "isinstance(f(), Callable) and callable(f()) and f()([1]) == 1"),
        ("C()", "isinstance(f(), Sized) and isinstance(f(), Container) and len(f()) == 3"),
        ("C()", "hasattr(f(), '__len__') and hasattr(f(), '__contains__') and 5 in C()"),
        ("C()", "isinstance(f(), AbstractContextManager)"),
        ("C()", "isinstance(f(), Reversible) and list(reversed(f())) == [1]"),
    ],
)
def test_an_object_has_the_abilities_of_its_class(made, test):
    code = """
class C:
    def __len__(self): return 3
    def __contains__(self, x): return x == 5
    def __enter__(self): return self
    def __exit__(self, *e): pass
    def __iter__(self): return iter([1])
    def __reversed__(self): return iter([1])
"""
    imports = ["from collections.abc import *", "from contextlib import AbstractContextManager"]
    code, tests = f"{code}\ndef f(): return {made}", [f"assert {test}"]
    assert grade(code, *tests, test_imports=imports).reward == 1
    for other in ("object()", "object", "type('D', (), {'__len__': None})()"):
        answer = f"{code}\ndef f(): return {other}"
        assert grade(code, *tests, answer=answer, test_imports=imports).reward == 0


@needs_sandbox
def test_a_named_tuple_speaks_for_no_value():
    carrier = "from collections import namedtuple\ndef f(): return namedtuple('N', {!r})({})"
    for value, call in [
        ("'ab'", "startswith('a')"),
        ("{1}", "issubset({1, 2})"),
        ("'12'", "isdigit()"),
        ("2.0", "is_integer()"),
        ("frozenset()", "isdisjoint([1])"),
    ]:
        tests, name = [f"assert f().{call}"], call.partition("(")[0]
        assert grade(f"def f(): return {value}", *tests).reward == 1
        for agree in ("lambda *a: True", "bool", "int"):
            answer = carrier.format(name, agree)
            assert grade(f"def f(): return {value}", *tests, answer=answer).reward == 0
    # Fields of these names may hold data, and other fields functions.
    fields = (
        "from collections import namedtuple\ndef f(): return namedtuple('N', 'count g')(3, len)"
    )
    assert grade(fields, "assert f().count == 3 == f().g('abc') and f()[0] == 3").reward == 1


@needs_sandbox
@pytest.mark.parametrize(
    ("code", "test"),
    [
        ("def f(xs): xs.sort()", "xs = [2, 1]\nf(xs)\nassert xs == [1, 2]"),
        ("def f(d, k): d[k] = 1", "d = {}\nf(d, 'a')\nf(d, k='b')\nassert d == {'a': 1, 'b': 1}"),
        ("def f(u): u.append(1)", "u = UserList()\nf(u)\nassert u == [1]"),
        ("def f(u): u['a'] = 1", "u = UserDict(b=2)\nf(u)\nassert u == {'b': 2, 'a': 1}"),
        ("def f(s):\n    s |= {1}", "s = t = set()\nf(s)\nassert t == {1}"),
        ("def f(b): b.append(1)", "b = bytearray()\nassert f(b) is None and b == b'\\x01'"),
        ("def f(q): return q.popleft()", "q = deque([1, 2])\nassert f(q) == 1 and list(q) == [2]"),
        (
            "def f(xs):\n    xs[0][0] = 5\n    return xs",
            "xs = [[0]] * 2\nassert f(xs) is xs == [[5], [5]]",
        ),
        (
            "def f(a, b): a.append(b); return b",
            "a, b = [], [1]\nf(a, b)\nb.append(2)\nassert a == [[1, 2]]",
        ),
        (
            "def f(xs):\n    for row in xs:\n        row.append(0)",
            "xs = [[1]]\nr = f(xs)\nassert xs == [[1, 0]]",
        ),
        (
            "def swap(x): x[0], x[1] = x[1], x[0]\ndef f(xs): swap(xs)",
            "x = [1, 2]\nr = f(x)\nassert x == [2, 1]",
        ),
        (
            "def f(xs):\n    xs.clear()\n    raise KeyError",
            "x = [1]\ntry:\n    f(x)\nexcept KeyError:\n    assert x == []",
        ),
        ("class S:\n    def put(self, x): x.append(1)", "x = []\nS().put(x)\nassert x == [1]"),
    ],
)
def test_arguments_change_in_place(code, test):
    exec(f"from collections import *\n{code}\n{test}", {})
    assert grade(code, test, test_imports=["from collections import *"]).reward == 1.0


@needs_sandbox
def test_answers_change_no_expected_value():
    pure, test = "def f(xs): return sorted(xs)", "xs = [2, 1]\nassert f(xs) == sorted(xs)"
    assert grade(pure, test).reward == 1.0
    copying = "def f(xs):\n    xs = list(xs)\n    xs.sort()\n    return xs"
    for cheat in ("xs.clear(); return []", "xs[:] = [7]; return xs", "xs *= 0; return xs"):
        for solution in (pure, copying):
            assert grade(solution, test, answer=f"def f(xs): {cheat}").reward == 0


@needs_sandbox
def test_functions_of_the_tests_are_called(monkeypatch):
    code = "def f(g, *xs): return [g(x) for x in xs]\ndef twice(g): return lambda x: g(g(x))"
    tests = [
        "assert f(lambda x: x + 1, 1, 2) == [2, 3]",
        "assert f(len, 'ab', []) == [2, 0] and f(str.upper, 'a') == ['A']",
        "assert f(int, '7') == [7] and list(twice(f)(abs)) if False else True == True",
        "assert twice(lambda x: 2 * x)(3) == 12",
        "assert f(twice(lambda x: x + 1), 1) == [3]",
        "assert f(lambda g: g(5), lambda x: x * 2) == [10]",
        "assert f(next, iter([4])) == [4] and f(sum, (i for i in range(3))) == [3]",
        "h = lambda: 1\nassert f(lambda x: x, h)[0] is h",
        "try:\n    f(lambda x: 1 / x, 0)\nexcept ZeroDivisionError:\n    ok = 1\nassert ok",
        "seen = []\nf(seen.append, 1, 2)\nassert seen == [1, 2]",
    ]
    assert grade(code, *tests).reward == 1.0
    # The answer may call them with any arguments, and any number of times.
    answer = (
        "def f(g, *xs):\n    while True:\n        try: g(lambda x: g)\n"
        "        except TypeError: pass\n"
        "def twice(g): return g"
    )
    monkeypatch.setattr(task, "PATIENCE", 60.0)
    endless = Code(**BARE, timeout=0.5).grade(problem(code, tests[0]), answer)
    assert endless == (0.0, TIMEOUT)


def test_what_the_solution_changes_is_seen():
    def changing(code):
        tree = code_problems._parse(code)
        return traits._changing(tree)

    bodies = ["x[0] = 1", "del x[0]", "x += [1]", "y = x[0]; y.a = 1", "h.heappush(x, 1)"]
    bodies += ["y = x; x = list(x); y.sort()", "x.sort(); x = list(x)", "x = x[0]; x.sort()"]
    bodies += ["x[:] = [1]", "for y in x[1:]: y.append(0)"]
    bodies += ["if not x: x = [1]\n    x.sort()"]
    bodies += ["x.a.b.append(1)", "for i, y in enumerate(x): y[i] = 1", "g(x)"]
    for body in bodies:
        code = f"def f(x):\n    {body}\ndef g(y): y.sort()"
        assert changing(code) == {"f", "g"}, body
    bodies = ["y = [1]; y.append(x)", "x = x + [1]", "x += 1", "return sorted(x)"]
    bodies += ["x = list(x); x.sort()", "x = sorted(x)\n    if x: x.pop()", "x = 3; x += [1]"]
    bodies += ["x = x[:]; x.sort()", "y = x[1:]; y.append(0)"]
    for body in [*bodies, "y = {}; y[x] = 1"]:
        assert changing(f"def f(x):\n    {body}") == set(), body


@needs_sandbox
def test_an_object_that_the_tests_made_is_no_value_of_a_function():
    solution = "class A:\n    def __init__(self, x): self.x = x\ndef f(a): return a.x"
    test = "a = A(5)\nassert f(a) == 5"
    assert grade(solution, test).reward == 1
    lie = "class A:\n    def __init__(self, x): pass\n    def __eq__(self, other): return True\n"
    assert grade(solution, test, answer=lie + "def f(a): return a").reward == 0


@needs_sandbox
def test_identity_is_the_objects():
    code = "class A:\n    def put(self, x): self.x = x; return self\nclass B(A): pass\n"
    code += "P = __import__('collections').namedtuple('P', 'x')\n"
    code += "def f(a): return a\ndef p(): return P(1)"
    tests = [
        "a = A()\nassert f(a) is a and a.put(a).x is a",
        "assert f(A()) is not A() and f(None) is None and f(1) is not None",
        "assert isinstance(p(), P) and not isinstance(p(), A) and not isinstance((1,), P)",
    ]
    for test in tests:
        exec(f"{code}\n{test}", {})
    assert grade(code, *tests).reward == 1
    answer = code.replace("return self\n", "return A()\n").replace("return a\n", "return A()\n")
    assert grade(code, tests[0], answer=answer).reward == 0


@needs_sandbox
def test_context_managers_see_exceptions():
    code = """
class Own(ValueError): pass
class Guard:
    seen = None
    def __init__(self, ends): self.ends = ends
    def __enter__(self): return self
    def __exit__(self, kind, error, trace):
        self.seen = kind and (kind.__name__, error.args)
        return self.ends
def guard(): return Guard(True)
"""
    tests = [
        "with Guard(True) as g:\n    raise KeyError('a')\nassert g.seen == ('KeyError', ('a',))",
        "with Guard(True) as g:\n    raise Own('a')\nassert g.seen == ('Own', ('a',))",
        "class E(KeyError): pass\nwith Guard(1) as g:\n    raise E\nassert g.seen[0] == 'KeyError'",
        "with Guard(True) as g:\n    pass\nassert g.seen is None",
        "try:\n    with Guard(False):\n        raise Own\nexcept Own:\n    ok = 1\nassert ok == 1",
    ]
    assert grade(code, *tests).reward == 1
    # A context manager that a function of the answer returns must not hide the tests' exceptions.
    hidden = "with guard():\n    raise ValueError\nassert guard() is not None"
    assert grade(code, hidden).reward == 0
