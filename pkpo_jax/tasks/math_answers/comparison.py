r"""Decides whether an answer is right: it has the right value, and leaves nothing to compute.

The rules, for an answer a and the problem's own answer g:

- Numbers are compared exactly: 0.5 is 1/2, and 0.333 is not 1/3. a is rounded to the places of g
  only if g is a decimal and a states that it is inexact ("x \approx 3.1416" for 3.14).
- a has to be evaluated (see `forms`), except for operations that g contains too: 10^6 is right if g
  is 10^6, and wrong if g is 1000000. With variables, a has to be a product, sum or fraction just
  as g is.
- An answer states one value. A chain of equations may lead to it ("2 + 5 = 7") if all its sides
  that have a value have the same; "8 = 7" and "7 \approx 8" are wrong. If g is a decimal, the last
  side may be the rounded value, after \approx ("\pi \approx 3.14"). A variable that is set equal to
  the value is a name ("x = 7", "x > 7"), and has to equal the name in g, if g has one.
- Units are ignored if only one of the two has a unit, or if one of the units is unknown; "5 cm" is
  not "5 m". Degrees and currencies are units. A percent sign is part of the value: 50\% is 1/2 and
  not 50. But 500\% is not 5, for nobody writes a whole number so. If g has a percent sign, the
  question asks for one, so the number without it is right too.
- 52_8 equals neither 52_7 nor 42, and is wrong if g is 52, which is 52_{10}. If g is 52_8, the
  question names the base, so 52 is right too.
- Tuples and intervals need the same brackets and parts; sets, lists and unions need the same parts
  in any order. Inequalities of one variable are intervals; "or" joins them, "and" intersects them.
- A bar over a value makes another value; one over points, as in \overline{AB}, does not.
- Words are compared as words. An unreadable answer is right only if its text is that of g.
- If g is a letter, the letter of the choice decides, unless another choice follows it; if not,
  "(B) 12" means 12.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from pkpo_jax.tasks.math_answers import forms, units
from pkpo_jax.tasks.math_answers.copies import copied
from pkpo_jax.tasks.math_answers.monomials import (
    TooLarge,
    Unknown,
    Value,
    rational,
    shown,
    variables,
)
from pkpo_jax.tasks.math_answers.reading import read
from pkpo_jax.tasks.math_answers.structure import (
    has_variable,
    is_label,
    is_name,
    named,
    names,
    point,
    simplified,
)
from pkpo_jax.tasks.math_answers.text import about, clean, label, squeezed
from pkpo_jax.tasks.math_answers.tree import Node
from pkpo_jax.tasks.math_answers.values import Arithmetic


def right(gold: str, answer: str, steps: int, question: str = "") -> bool:
    r"""Returns whether an answer is right for a problem whose own answer is `gold`.

    Args:
      gold, answer: the answers as they were written, in LaTeX or plain text.
      steps: the number of steps that the arithmetic may take.
      question: the text of the problem. A formula that it contains is no answer, unless it is the
        gold answer itself, an integer, or a variable.

    Raises:
      TooLarge: the values need more steps, or more memory, than allowed.

    >>> right("56088", r"123 \cdot 456", 1000), right(r"\frac{1}{2}", "0.5", 1000)
    (False, True)
    """
    readings = {clean(answer): None}
    if "," in answer:
        # In 300,400,500 the commas may separate thousands or items.
        readings[clean(answer, thousands=False)] = None
    gold = clean(gold)
    return any(_right(gold, reading, steps, question) for reading in readings)


def _right(gold: str, answer: str, steps: int, question: str) -> bool:
    """Decides for clean texts, as `right` does."""
    if squeezed(gold) == squeezed(answer):
        return True
    ours, theirs = label(gold), label(answer)
    if re.fullmatch("[A-J]", gold):
        ours = gold, ""
    if ours and not ours[1]:
        letter = theirs[0] if theirs else squeezed(answer).strip("[]{}\\")
        return letter == ours[0]
    if theirs and theirs[1]:
        if ours and ours[0] != theirs[0]:
            return False
        answer = theirs[1]
    if ours:
        gold = ours[1]
    gold, _ = about(gold)
    answer, inexact = about(answer)
    own = read(gold)
    texts = dict.fromkeys((answer, units.marked(answer)))
    nodes = [node for text in texts if (node := read(text)) is not None]
    if own is None or not nodes:
        return squeezed(gold) == squeezed(answer)
    comparison = _Comparison(Arithmetic(steps), inexact)
    return any(not copied(question, own, node) and comparison.same(own, node) for node in nodes)


class _Comparison:
    """Compares two trees, part by part."""

    def __init__(self, arithmetic: Arithmetic, inexact: bool) -> None:
        self.arithmetic, self.inexact = arithmetic, inexact

    def same(self, gold: Node, answer: Node) -> bool:
        """Returns whether an answer, or a part of one, is right for its gold counterpart."""
        ours, theirs = names(gold), names(answer)
        if ours and theirs and ours != theirs:
            return False
        gold, answer = simplified(gold), simplified(answer)
        if gold == answer:
            return True
        own = _single(named(gold)[1])
        value = _single(named(point(answer) if own.kind == "group" else answer)[1])
        if own.kind != "relation" and value.kind == "relation":
            return self._chain(own, value)
        many = ("list", "set")
        # The parts of a union may also be listed, as inequalities of one variable.
        unions = own.kind == "union" and value.kind in ("union", "list") and len(theirs) < 2
        if (own.kind in many and value.kind in many) or unions:
            return self._unordered(own.args, value.args)
        if own.kind in ("group", "matrix", "relation", "words") or own.kind in many:
            if own.kind != value.kind:
                return False
            compare = {"group": self._groups, "matrix": self._matrices, "words": _same_words}
            return compare.get(own.kind, self._relations)(own, value)
        return self._expressions(own, value)

    def _unordered(self, gold: Sequence[Node], answer: Sequence[Node]) -> bool:
        left = list(answer)
        for part in gold if len(gold) == len(answer) else ():
            # A set of one equals its element, but not where both are elements.
            match = next(
                (
                    i
                    for i, other in enumerate(left)
                    if (part.kind == "set") == (other.kind == "set") and self.same(part, other)
                ),
                None,
            )
            if match is None:
                return False
            del left[match]
        return len(gold) == len(answer)

    def _ordered(self, gold: Iterable[Node], answer: Iterable[Node]) -> bool:
        return all(self.same(one, other) for one, other in zip(gold, answer, strict=True))

    def _groups(self, gold: Node, answer: Node) -> bool:
        if gold.args[:2] != answer.args[:2] or len(gold.args) != len(answer.args):
            return False
        return self._ordered(gold.args[2:], answer.args[2:])

    def _matrices(self, gold: Node, answer: Node) -> bool:
        if [len(row) for row in gold.args] != [len(row) for row in answer.args]:
            return False
        return all(self._ordered(*rows) for rows in zip(gold.args, answer.args, strict=True))

    def _chain(self, gold: Node, answer: Node) -> bool:
        r"""Returns whether a chain such as 2 + 5 = 7 or \pi \approx 3.14 states only gold."""
        signs, sides = answer.args
        if signs == ("~",) and (is_name(sides[0]) or is_label(sides[0])):
            return _Comparison(self.arithmetic, inexact=True).same(gold, sides[1])
        ends = signs[-1] == "~"
        exact = sides[:-1] if ends else sides
        if any(sign != "=" for sign in signs[: len(exact) - 1]):
            return False
        # A name in front, as in x = 3 + 4 = 7, is no side of the chain. Nor are formulas
        # between it and its value, as in V = \pi r^2 h = 12\pi.
        if len(exact) > 1 and (
            named(Node("relation", (("=",), exact[:2])))[0] == exact[0]
            or (is_label(exact[0]) and not has_variable(exact[-1]))
        ):
            exact = exact[1:]
            if not has_variable(exact[-1]):
                exact = [*(side for side in exact[:-1] if not _is_formula(side)), exact[-1]]
        if not self._agree(exact):
            return False
        if not ends:
            return self.same(gold, exact[-1])
        rounded = sides[-1]
        with contextlib.suppress(Unknown):
            if not _rounds(self.arithmetic.approximate(self.arithmetic.of(exact[-1])), rounded):
                return False
            return self.same(gold, exact[-1]) or (_places(gold) > 0 and self.same(gold, rounded))
        return False

    def _agree(self, sides: Sequence[Node]) -> bool:
        """Returns whether all sides of a chain that have a value have that of the last side."""
        if len(sides) == 1:
            return True
        try:
            last = self.arithmetic.of(sides[-1])
        except Unknown:
            return all(self.same(sides[-1], side) for side in sides[:-1])
        for side in sides[:-1]:
            if side.kind in ("words", "list", "set", "group", "union", "matrix", "quantity"):
                return False
            with contextlib.suppress(Unknown):
                if not self.arithmetic.equal(self.arithmetic.of(side), last):
                    return False
        return True

    def _relations(self, gold: Node, answer: Node) -> bool:
        (signs, sides), (others, parts) = gold.args, answer.args
        if signs == others == ("=",):
            return self._equations(sides, parts)
        flipped = tuple({"<": ">", ">": "<", "<=": ">=", ">=": "<="}.get(s, s) for s in others)
        if signs == others and self._ordered(sides, parts):
            return True
        return ":" not in signs and signs == flipped[::-1] and self._ordered(sides, parts[::-1])

    def _equations(self, gold: Sequence[Node], answer: Sequence[Node]) -> bool:
        """Returns whether two equations differ only by terms moved across, or by their sign."""
        compute = self.arithmetic
        try:
            one, other = (
                compute.subtract(compute.of(sides[0]), compute.of(sides[1]))
                for sides in (gold, answer)
            )
            if not compute.equal(one, other) and not compute.equal(one, compute.scale(other, -1)):
                return False
            done = [
                forms.operations(sides[0], compute) + forms.operations(sides[1], compute)
                for sides in (gold, answer)
            ]
        except Unknown:
            return False
        return _allowed(*done)

    def _expressions(self, gold: Node, answer: Node) -> bool:
        if units.differ(_unit(gold), _unit(answer)):
            return False
        gold, answer = (
            n.args[0] if n.kind in ("quantity", "degree") else n for n in (gold, answer)
        )
        if "base" in (gold.kind, answer.kind):
            return _same_digits(gold, answer)
        if gold.kind == "percent" and answer.kind != "percent" and self.same(gold.args[0], answer):
            return True
        try:
            one, other = self.arithmetic.of(gold), self.arithmetic.of(answer)
            if (gold.kind == "percent") != (answer.kind == "percent") and _is_whole(one):
                return False
            return self._equal(gold, one, other) and self._evaluated(gold, answer, one, other)
        except Unknown:
            return False

    def _equal(self, gold: Node, one: Value, other: Value) -> bool:
        number, exact = rational(other), rational(one)
        if self.inexact and number is not None and exact is not None and _places(gold) > 0:
            return _rounds(number, gold)
        return self.arithmetic.equal(one, other)

    def _evaluated(self, gold: Node, answer: Node, one: Value, other: Value) -> bool:
        compute = self.arithmetic
        if not _allowed(forms.operations(gold, compute), forms.operations(answer, compute)):
            return False
        if not variables(one) and not variables(other):
            return True
        return forms.algebraic_form(gold, compute) == forms.algebraic_form(answer, compute)


def canonical(answer: str) -> str:
    r"""Returns a text that equal answers share, whatever their spelling: the value, if evaluated.

    Units, names of variables and \approx are left out. An answer that leaves operations undone
    keeps its own text, so that 2 + 5 is no vote for 7. This takes a few milliseconds at most.

    >>> [canonical(text) for text in (r"\dfrac{2}{4}", "x = 0.5", r"\sqrt{3} + 1", "East")]
    ['1/2', '1/2', '1+\\sqrt{3}', 'east']
    """
    text = clean(answer)
    choice = label(text)
    if choice:
        return f"({choice[0]}) {canonical(choice[1])}" if choice[1] else choice[0]
    text, _ = about(text)
    node = read(text)
    if node is not None:
        with contextlib.suppress(Unknown, TooLarge):
            return _shown(node, Arithmetic(200))
    return squeezed(text)


def _shown(node: Node, compute: Arithmetic) -> str:
    """Returns the canonical text of a tree; raises Unknown if it has none."""
    node = _single(named(point(simplified(node)))[1])
    kind, args = node
    if kind == "words":
        return args[0]
    if kind == "base":
        return f"{args[0]}_{args[1]}"
    if kind in ("list", "set"):
        return ", ".join(sorted(_shown(part, compute) for part in args)) or r"\emptyset"
    if kind == "union":
        return r" \cup ".join(sorted(_shown(part, compute) for part in args))
    if kind == "group":
        return args[0] + ", ".join(_shown(part, compute) for part in args[2:]) + args[1]
    if kind == "matrix":
        rows = (" & ".join(_shown(part, compute) for part in row) for row in args)
        return r"\begin{pmatrix} " + r" \\ ".join(rows) + r" \end{pmatrix}"
    if kind == "relation":
        raise Unknown
    value = compute.of(node)
    if forms.operations(node, compute) or (kind == "percent" and _is_whole(value)):
        raise Unknown
    form = forms.algebraic_form(node, compute)
    if form.factors > 1 or form.divisors or form.outside != ((), 1):
        raise Unknown
    return shown(value)


def _is_formula(side: Node) -> bool:
    r"""Returns whether a side of a chain only explains a name, as in V = \pi r^2 h = 12\pi.

    The side in x = 3y = 6 does not, for these may be two equations.
    """
    if side.kind == "mul" and is_name(side.args[-1]):
        return any(map(has_variable, side.args[:-1]))
    return side.kind != "symbol" and has_variable(side)


def _single(node: Node) -> Node:
    """Returns the element of a set of one, unless it is a set itself; other nodes unchanged."""
    one = node.kind == "set" and len(node.args) == 1 and node.args[0].kind != "set"
    return node.args[0] if one else node


def _same_words(gold: Node, answer: Node) -> bool:
    # A mark between two digits counts: 1.5 is not 15.
    marks = r"\s|(?<![0-9])[^a-z0-9]|[^a-z0-9](?![0-9])"
    one, other = (re.sub(marks, "", node.args[0]) for node in (gold, answer))
    return one == other and bool(one)


def _same_digits(gold: Node, answer: Node) -> bool:
    if gold.kind == "number" and answer.kind == "base" and answer.args[1] == 10:
        gold, answer = answer, gold
    if gold.kind == "base" and answer.kind == "number" and answer.args[1] == 0:
        return gold.args[0] == str(answer.args[0].numerator)
    return gold == answer


def _is_whole(value: Value) -> bool:
    number = rational(value)
    return number is not None and number.denominator == 1


def _allowed(gold: forms.Operations, answer: forms.Operations) -> bool:
    """Returns whether an answer leaves no more undone than gold, and expands as much."""
    return answer <= gold and answer["expand"] == gold["expand"]


def _unit(node: Node) -> str:
    """Returns the unit of a number with or without a sign, or ""."""
    while node.kind == "neg":
        node = node.args[0]
    return "degree" if node.kind == "degree" else node.args[1] if node.kind == "quantity" else ""


def _places(node: Node) -> int:
    while node.kind in ("neg", "quantity", "degree", "percent"):
        node = node.args[0]
    return node.args[1] if node.kind == "number" else -1


def _rounds(number: Fraction, written: Node) -> bool:
    """Returns whether a number, rounded to the places of a written decimal, equals it."""
    places = _places(written)
    if places < 0:
        return False
    try:
        decimal = rational(Arithmetic().of(written))
    except (Unknown, TooLarge):
        return False
    return decimal is not None and abs(number - decimal) * 2 * 10**places <= 1
