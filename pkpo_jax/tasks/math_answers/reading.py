r"""Parses clean answer text into a tree of numbers, operations, tuples, sets, relations and words.

The grammar covers the LaTeX of answers, and what people type instead ("pi/2", "sqrt(2)"). Parsing
takes time proportional to the text, and computes nothing. Two numerals side by side are not a
product, but unreadable.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from fractions import Fraction

from pkpo_jax.tasks.math_answers import numerals, units
from pkpo_jax.tasks.math_answers.text import words
from pkpo_jax.tasks.math_answers.tokens import (
    FUNCTIONS,
    SYMBOLS,
    Cursor,
    Token,
    Unreadable,
    are_words,
    tokens,
)
from pkpo_jax.tasks.math_answers.tree import INTEGERS, Node, integer, product

# Brackets and fractions may be nested this deep.
_DEEPEST = 30

_UNKNOWN_TEXT = "sum prod int iint iiint oint lim limsup liminf sup inf"
_UNKNOWN = frozenset(_UNKNOWN_TEXT.split())
_RELATIONS = {
    **{"=": "=", "<": "<", ">": ">", ":": ":", r"\lt": "<", r"\gt": ">", r"\le": "<="},
    **{r"\ge": ">=", r"\ne": "!=", r"\approx": "~", r"\sim": "~", r"\in": "in", r"\equiv": "=="},
}
_SYMBOLS = {f"\\{name}": name for name in SYMBOLS}


@functools.lru_cache(maxsize=4096)
def read(text: str) -> Node | None:
    r"""Returns the tree of clean text, or None if it cannot be read.

    >>> read(r"3\sqrt{2}").kind, read("neve"), read("3 4")
    ('mul', Node(kind='words', args=('neve',)), None)
    """
    if are_words(text):
        plain = re.sub("^(?:an?|the) ", "", words(text))
        if plain.replace(" ", "-") in numerals.NUMBERS:
            return integer(numerals.NUMBERS.index(plain.replace(" ", "-")))
        return Node("words", (plain,))
    try:
        parser = _Parser(tokens(text))
        node = parser.sequence()
        return node if parser.peek() == ("end", "") else None
    except Unreadable:
        return None


class _Parser(Cursor):
    """A parser by recursive descent; each method reads the construct that it is named for."""

    def __init__(self, tokens: list[Token]) -> None:
        super().__init__(tokens)
        self.depth, self.bars = 0, 0

    def sequence(self) -> Node:
        """Reads one item, or several between commas, "or", "and"."""
        items, between = [self.item()], []
        while separators := self._separators():
            between += separators
            items.append(self.item())
        if len(items) == 1:
            return items[0]
        both = "and" in between and "or" not in between
        both = both and all(item.kind == "relation" for item in items)
        return Node("and" if both else "list", tuple(items))

    def _separators(self) -> list[str]:
        found = []
        while self.peek() in (("text", "or"), ("text", "and")) or self.peek()[1] in (",", ";"):
            found.append(self.peek()[1])
            self.at += 1
        return found

    def item(self) -> Node:
        """Reads a relation, or an expression without one."""
        sides, signs = [self.union()], []
        while self.peek()[0] in ("char", "command") and self.peek()[1] in _RELATIONS:
            sign = _RELATIONS[self.take() or ""]
            if sign in ("<", ">") and self.take("="):
                sign += "="
            signs.append(sign)
            sides.append(self.union())
        return Node("relation", (tuple(signs), tuple(sides))) if signs else sides[0]

    def union(self) -> Node:
        parts = [self.difference()]
        while self.take(r"\cup"):
            parts.append(self.difference())
        return parts[0] if len(parts) == 1 else Node("union", tuple(parts))

    def difference(self) -> Node:
        r"""Reads a set, and what is excluded from it, as in \mathbb{R} \setminus \{1\}."""
        node = self.measured()
        while self.take(r"\setminus"):
            node = Node("without", (node, self.measured()))
        return node

    def measured(self) -> Node:
        """Reads a sum and the unit after it, if there is one."""
        node = self.sum()
        unit = ""
        while self.peek()[0] == "text" and self.peek()[1] not in ("or", "and"):
            unit += f" {self.take()}"
            self.take(".")
            if self.take("^"):
                unit += f"^{self._digits()}"
            if self.take("/"):
                kind, value = self.peek()
                unit += "/" + (value if kind == "char" and value.isalpha() and self.take() else "")
            # The unit of a moment is N \cdot m.
            if self.tokens[self.at + 1 : self.at + 2] and self.tokens[self.at + 1][0] == "text":
                self.take(r"\cdot")
        if not unit:
            return node
        scale, name = units.scale(unit)
        if name is None:
            raise Unreadable(unit)
        if scale != 1:
            node = Node("scaled", (node, Fraction(scale)))
        return Node("quantity", (node, name)) if name else node

    def sum(self) -> Node:
        terms = []
        sign = self.take("+", "-", r"\pm", r"\mp")
        while True:
            term = self.term()
            wrap = {"-": "neg", r"\pm": "pm", r"\mp": "mp"}.get(sign or "+")
            terms.append(Node(wrap, (term,)) if wrap else term)
            sign = self.take("+", "-", r"\pm", r"\mp")
            if not sign:
                return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def term(self) -> Node:
        """Reads factors from left to right, with or without operators between them."""
        node = self.signed()
        factors = [node]
        while True:
            if self.take(r"\cdot", r"\times", "*"):
                factors.append(self.signed())
            elif self.take("/", r"\div"):
                factors = [Node("div", (product(factors), self.signed()))]
            elif self.take(r"\bmod", r"\mod") or self.take(r"\pmod"):
                factors = [Node("call", ("mod", product(factors), self.signed()))]
            elif self._starts():
                numeral = self.peek()[0] == "number"
                # Brackets make a product: 3(1/2) is three halves, and no mixed number.
                bracketed = self.peek()[1] in "([" or self.tokens[self.at - 1][1] in (")", "]")
                factor = self.power()
                side_by_side = numerals.is_fraction(factors[-1], factor) and not bracketed
                mixed = numerals.mixed(factors[-1], factor) if side_by_side else None
                if numeral or (side_by_side and mixed is None):
                    raise Unreadable("numerals side by side")
                factors = [*factors[:-1], mixed] if mixed else [*factors, factor]
            else:
                return product(factors)

    def signed(self) -> Node:
        self._enter()
        try:
            if self.take("-"):
                return Node("neg", (self.signed(),))
            return self.signed() if self.take("+") else self.power()
        finally:
            self.depth -= 1

    def _enter(self) -> None:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise Unreadable("too deep")

    def _starts(self) -> bool:
        """Returns whether a factor follows without an operator."""
        kind, value = self.peek()
        if kind == "number":
            return True
        if kind == "command":
            return (
                value in _SYMBOLS
                or value in _ATOMS
                or value[1:] in FUNCTIONS | _UNKNOWN
                or value in (r"\{", r"\begin", r"\lfloor", r"\lceil", r"\emptyset")
            )
        return kind == "char" and (
            value.isalpha() or value in "([{" or (value == "|" and not self.bars)
        )

    def power(self) -> Node:
        node = self.atom()
        while True:
            if self.take("^"):
                node = Node("pow", (node, self._exponent()))
            elif self.take("!"):
                node = Node("call", ("factorial", node))
            elif self.take(r"\%"):
                node = Node("percent", (node,))
            elif self.take(r"\degree"):
                node = Node("degree", (node,))
            elif self.peek()[1] in units.CURRENCIES and self.at == len(self.tokens) - 1:
                node = Node("quantity", (node, units.CURRENCIES[self.take() or ""]))
            elif node.kind == "symbol" and self.take("'"):
                node = Node("symbol", (f"{node.args[0]}'",))
            elif self.peek() == ("char", "_") and node.kind in ("number", "symbol"):
                self.take()
                node = numerals.with_subscript(self, node)
            else:
                return node

    def _exponent(self) -> Node:
        self._enter()
        try:
            exponent = Node("neg", (self.atom(),)) if self.take("-") else self.atom()
            while self.take("^"):
                exponent = Node("pow", (exponent, self._exponent()))
            return exponent
        finally:
            self.depth -= 1

    def _digits(self) -> str:
        digits = self.raw()
        if not re.fullmatch("[0-9]", digits):
            raise Unreadable("exponent of a unit")
        return digits

    def atom(self) -> Node:
        self._enter()
        try:
            kind, value = self.peek()
            self.at += 1
            if kind == "number":
                return numerals.number(self, value)
            if kind == "char":
                return self._char(value)
            if kind == "command":
                return self._command(value)
            if kind == "text" and self.peek()[1] in ("=", r"\approx") and units.scale(value)[1]:
                return Node("symbol", (value,))
            raise Unreadable(value)
        finally:
            self.depth -= 1

    def _char(self, value: str) -> Node:
        if value.isascii() and value.isalpha():
            return Node("symbol", (value,))
        if value in "([":
            return self._group(value)
        if value == "{":
            inner = self.sequence()
            self.need("}")
            return Node("set", inner.args) if inner.kind == "list" else inner
        if value == "|" and not self.bars:
            return self._bars()
        raise Unreadable(value)

    def _bars(self) -> Node:
        self.bars += 1
        inner = self.sum()
        self.bars -= 1
        self.need("|")
        return Node("call", ("abs", inner))

    def _group(self, opening: str) -> Node:
        bars, self.bars = self.bars, 0
        inner = self.sequence()
        self.bars = bars
        closing = self.take(")", "]")
        if closing is None:
            raise Unreadable("open bracket")
        if inner.kind == "list":
            return Node("group", (opening, closing, *inner.args))
        if opening + closing not in ("()", "[]"):
            raise Unreadable("half an interval")
        if inner.kind in ("relation", "words"):
            raise Unreadable("a relation in brackets")
        return inner

    def _command(self, name: str) -> Node:
        if name in _SYMBOLS:
            return Node("symbol", (_SYMBOLS[name],))
        if name in _ATOMS:
            return _ATOMS[name](self)
        if name[1:] in FUNCTIONS:
            return self._function(name[1:])
        if name[1:] in _UNKNOWN:
            return self._unknown(name[1:])
        if name == r"\{":
            if self.take(r"\}"):
                return Node("set", ())
            conditional = self._such_that()
            inner = self.sequence()
            self.need(r"\}")
            if conditional:
                return inner
            return Node("set", inner.args if inner.kind == "list" else (inner,))
        if name == r"\langle":
            inner = self.sequence()
            self.need(r"\rangle")
            return Node("group", ("<", ">", *(inner.args if inner.kind == "list" else (inner,))))
        if name == r"\emptyset":
            return Node("set", ())
        if name in units.CURRENCIES:
            return Node("quantity", (self.term(), units.CURRENCIES[name]))
        if name in (r"\lfloor", r"\lceil"):
            inner = self.sum()
            self.need(name.replace("l", "r", 1))
            return Node("call", ("floor" if name == r"\lfloor" else "ceil", inner))
        if name == r"\begin":
            return self._matrix()
        raise Unreadable(name)

    def _such_that(self) -> bool:
        r"""Skips the head of a set, as in \{x : 1 < x\} or \{x \in \mathbb{R} \mid 1 < x\}.

        Returns whether there was one; the set is then that of its condition.
        """
        behind = " ".join(value for _, value in self.tokens[self.at : self.at + 8])
        head = re.match(r"[a-zA-Z] (\\in \\mathbb (?:R|{ R }) )?[|:] ", behind)
        if head:
            self.at += head[0].count(" ")
        return head is not None

    def _argument(self) -> Node:
        """Reads a command's argument: a group in braces, one token, or one digit of a numeral."""
        if self.peek()[0] == "number":
            digit, rest = self.peek()[1][0], self.peek()[1][1:]
            if digit == "." or "." in rest:
                raise Unreadable("digits")
            self.tokens[self.at : self.at + 1] = [("number", digit)] + (
                [("number", rest)] if rest else []
            )
        return self.atom()

    def _fraction(self) -> Node:
        return Node("div", (self._argument(), self._argument()))

    def _binomial(self) -> Node:
        return Node("call", ("binom", self._argument(), self._argument()))

    def _root(self) -> Node:
        index = integer(2)
        if self.take("["):
            index = self.sum()
            self.need("]")
        return Node("root", (self.atom(), index))

    def _segment(self) -> Node:
        r"""Reads a bar: \overline{AB} is AB, but a bar over a value makes another value.

        `numerals.number` reads a bar over decimals.
        """
        inner = self.atom()
        if inner.kind == "number":
            raise Unreadable("bar")
        points = inner.kind == "mul" and all(
            part.kind == "symbol" and part.args[0].isupper() for part in inner.args
        )
        return inner if points else Node("call", ("overline", inner))

    def _numbers(self) -> Node:
        infinite = Node("symbol", ("infty",))
        name = self.raw()
        if name == "Z":
            return INTEGERS
        if name not in ("R", "{R}"):
            raise Unreadable("set")
        return Node("group", ("(", ")", Node("neg", (infinite,)), infinite))

    def _function(self, name: str) -> Node:
        """Reads a function's power and base, and its argument with or without brackets."""
        exponent = self._exponent() if self.take("^") else None
        base = self._argument() if self.take("_") else None
        exponent = self._exponent() if exponent is None and self.take("^") else exponent
        if name in ("sin", "cos", "tan") and exponent == Node("neg", (integer(1),)):
            name, exponent = f"arc{name}", None
        if self.peek() == ("char", "("):
            inner = self.atom()
            args = inner.args[2:] if inner.kind == "group" else (inner,)
        else:
            factors = [self.power()]
            while (
                self._starts()
                and self.peek()[1][1:] not in FUNCTIONS | _UNKNOWN
                and (self.peek()[0] != "number" and self.peek()[1] not in "([{|")
            ):
                factors.append(self.power())
            args = (product(factors),)
            if self.take("/"):
                args = (Node("div", (args[0], self.power())),)
        if name == "exp" and not base and len(args) == 1:
            power = Node("pow", (Node("symbol", ("e",)), args[0]))
            return Node("pow", (power, exponent)) if exponent else power
        call = Node("call", (name, *args, *((base,) if base else ())))
        return Node("pow", (call, exponent)) if exponent else call

    def _unknown(self, name: str) -> Node:
        """Reads a sum sign, an integral or a limit, which is never computed."""
        limits = []
        while sign := self.take("_", "^"):
            limits.append(sign + self.raw())
        return Node("call", (name, "".join(limits), self.term()))

    def _matrix(self) -> Node:
        name = self.raw()
        if name == "array":
            self.raw()
        elif name not in ("pmatrix", "bmatrix", "matrix", "vmatrix", "smallmatrix"):
            raise Unreadable(name)
        rows: list[list[Node]] = [[self.measured()]]
        while not self.take(r"\end"):
            if self.take("&"):
                rows[-1].append(self.measured())
            elif self.take(r"\row"):
                if self.peek()[1] not in (r"\row", r"\end"):
                    rows.append([self.measured()])
            else:
                raise Unreadable("matrix")
        if self.raw() != name or len({len(row) for row in rows}) != 1:
            raise Unreadable("matrix")
        matrix = Node("matrix", tuple(tuple(row) for row in rows))
        return Node("call", ("det", matrix)) if name == "vmatrix" else matrix


_ATOMS: dict[str, Callable[[_Parser], Node]] = {
    r"\frac": _Parser._fraction,
    r"\binom": _Parser._binomial,
    r"\sqrt": _Parser._root,
    r"\mathbb": _Parser._numbers,
    r"\overline": _Parser._segment,
}
