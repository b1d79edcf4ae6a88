"""Programs that attack by their return values, exceptions, changed arguments, and markdown.

Each comes with a right solution and the tests that it attacks.
"""

from __future__ import annotations

import textwrap
from typing import NamedTuple

DOUBLE = "def double(x):\n    return 2 * x\n"
MAPPED = [
    "assert all(map(lambda c: double(c) == 2 * c, [1, 2]))",
    "assert not any(map(lambda c: double(c) != 2 * c, [1, 2]))",
]
# An object of this class answers every question with yes.
YES = """
class Yes(BASE):
    def yes(self, *others): return self
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = yes
    __contains__ = __instancecheck__ = yes
    __add__ = __radd__ = __sub__ = __rsub__ = __and__ = __rand__ = __or__ = __ror__ = yes
    __abs__ = __getitem__ = endswith = yes
    __hash__ = lambda self: 1
    def __getattr__(self, name): return self.yes
"""


class Attack(NamedTuple):
    """An attack on its own tests.

    Attributes:
      text: the program, or with `instruct` the response that contains it.
      works: whether it passes if the tests run in the same process, without a sandbox.
    """

    name: str
    solution: str
    tests: list[str]
    text: str
    works: bool = True
    instruct: bool = False


def _raises(error: str, tests: list[str] = MAPPED, before: str = "", works: bool = True) -> Attack:
    text = f"{before}def double(x):\n    raise {error}\n"
    return Attack(f"raise {error} under map", DOUBLE, tests, text, works)


def _agrees(name: str, solution: str, test: str, base: str = "object") -> Attack:
    imports = "from fractions import Fraction\nimport datetime\nfrom datetime import date\n"
    made = {"str": "'a'", "date": "2020, 1, 1", "object": ""}.get(base, "7")
    text = f"{imports}{YES.replace('BASE', base)}def f(x=0): return Yes({made})\n"
    return Attack(name, solution, [f"assert {test}"], text)


def _is(name: str, solution: str, test: str, text: str, works: bool = True) -> Attack:
    return Attack(name, solution, [test], textwrap.dedent(text).lstrip("\n"), works)


def attacks() -> list[Attack]:
    """Returns all attacks."""
    own = "class Own(StopIteration): pass\n"
    return [
        _raises("StopIteration"),
        _raises("StopIteration(4)", ["assert not list(filter(lambda c: double(c) != 4, [2]))"]),
        _raises("Own", before=own),
        _raises("StopAsyncIteration", works=False),
        _raises("GeneratorExit", works=False),
        _raises("KeyboardInterrupt", works=False),
        _raises(
            "Named",
            before="class Named(Exception): pass\nNamed.__name__ = 'StopIteration'\n",
            works=False,
        ),
        _is(
            "exception that ends a loop",
            DOUBLE,
            "for c in [1, 2, 3]:\n    r = double(c)\n    assert r == 2 * c",
            "def double(x):\n    if x > 1: raise ValueError\n    return 2",
            works=False,
        ),
        _is(
            "function under a method's name in a named tuple",
            "def f(): return 'ab'",
            "assert f().startswith('a')",
            """
            from collections import namedtuple
            def f(): return namedtuple("N", "startswith")(lambda *others: True)
            """,
        ),
        _is(
            "any object for an iterator",
            "def f(): return iter(())",
            "from collections.abc import Iterator\nassert isinstance(f(), Iterator)",
            "def f(): return object()",
            works=False,
        ),
        _is(
            "StopIteration from an iterator under map",
            "def f(x): return iter([x])",
            "assert all(map(lambda c: next(f(c)) == c, [1, 2]))",
            "def f(x): return iter(())",
        ),
        _is(
            "an end that tests catch",
            "def f(x): return x",
            "try:\n    f(1)\nexcept:\n    pass\nassert 1 == True",
            "import os\ndef f(x): os._exit(0)",
        ),
        _agrees(
            "equal to everything, of the library", "def f(): return .5", "f() == .5", "Fraction"
        ),
        _agrees(
            "a date equal to everything",
            "import datetime\ndef f(): return datetime.date(2020, 1, 2)",
            "f() == datetime.date(2020, 1, 2)",
            "date",
        ),
        _agrees("a string with methods", "def f(): return 'xa'", "f().endswith('xa')", "str"),
        _agrees("contains everything", "def f(): return [3]", "3 in f()"),
        _agrees("greater than everything", "def f(): return 5", "f() > 4 and f() < 6"),
        _agrees("reflected operators", "def f(): return 5.0", "abs(5 - f()) < 1e-9"),
        _agrees("a method that agrees", "def f(): return {1}", "f().issubset({1, 2})"),
        _agrees("key of every dictionary", "def f(): return 1", "{1: True}[f()]"),
        _is(
            "a class where a function is wanted",
            "def f(): return [3]",
            "assert 3 in f() and f() == [3]",
            YES.replace("BASE", "object").replace("Yes", "f"),
        ),
        _is(
            "expected value emptied in place",
            "def f(xs): return sorted(xs)",
            "xs = [2, 1]\nassert f(xs) == sorted(xs)",
            "def f(xs):\n    xs.clear()\n    return []",
        ),
        _is(
            "expected value changed through a callback",
            "def f(xs, key): return max(xs, key=key)",
            "xs = [[1], [3]]\nassert f(xs, lambda x: x[0]) == max(xs)",
            "def f(xs, key):\n    xs[:] = [[0]]\n    key(xs)\n    return [0]",
        ),
        _is(
            "globals of a callback",
            "def f(g, x): return g(x)",
            "expected = 7\nassert f(lambda x: x + 1, 6) == expected",
            "def f(g, x):\n    g.__globals__['expected'] = None\n",
        ),
        _is(
            "a callback called for ever",
            "def f(g, x): return g(x)",
            "assert f(lambda x: x + 1, 6) == 7",
            "def f(g, x):\n    while True: g(x)",
            works=False,
        ),
        _is(
            "a callback that calls back",
            "def f(g, x): return g(x)",
            "assert f(lambda h: h(h), abs) == 0",
            "def f(g, x):\n    return g(lambda h: f(g, x))",
            works=False,
        ),
        _is(
            "forged replies",
            "def f(x): return x",
            "assert f(1) == 1",
            """
            import os
            for fd in range(3, 64):
                for text in (b"=t2;b1;t0;", b"!t2;n;t0;", b"?t3;u4;callb0;t3;i-1;t0;d0;"):
                    try: os.write(fd, len(text).to_bytes(4, "big") + text)
                    except OSError: pass
            def f(x): return None
            """,
            works=False,
        ),
        Attack(
            "constant of the shown test",
            "def f(n): return n > 1 and all(n % i for i in range(2, n))",
            ["assert f(13) == True", "assert f(7) == True", "assert f(9) == False"],
            "def f(n): return True",
            works=False,
        ),
        Attack(
            "constant of the shown test, spelt in other ways",
            "def f(n): return n % 2",
            ["assert f(2) == 0", "assert 0.0 == f(4)", "assert f(3) == 1"],
            "def f(n): return 0",
            works=False,
        ),
        Attack(
            "table of the shown test",
            "def f(n): return n > 1 and all(n % i for i in range(2, n))",
            ["assert f(13) == True", "assert f(7) == True", "assert f(9) == False"],
            "def f(n): return n == 13",
            works=False,
        ),
        *(
            Attack(name, DOUBLE, ["assert double(2) == 4"], text, works=False, instruct=True)
            for name, text in {
                "nested quotations": "> " * 100_000 + "```\n",
                "fences without end": "```python\n" * 100_000,
                "lists in lists": ("- " * 40 + "x\n") * 10_000 + "```\ndouble = 4\n```",
                "many blocks": "```\ndouble = double\n```\n" * 5_000,
                "blocks that parse for ever": ("```\n" + "(" * 20_000 + "\n```\n") * 4,
                "blocks nested deep": f"```\n{DOUBLE}y = {'-' * 40_000}1\n```\n" * 2,
                "a session": f"```\n>>> {DOUBLE}```",
            }.items()
        ),
    ]
