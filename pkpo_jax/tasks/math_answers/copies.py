r"""Tells answers that are copied from the question, as 3/20 where it is asked for as a decimal.

Formulas and answers are compared without units and without the order of factors and terms, so that
a copy in another spelling is a copy. Their values are not computed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from pkpo_jax.tasks.math_answers.reading import read
from pkpo_jax.tasks.math_answers.structure import named, simplified
from pkpo_jax.tasks.math_answers.text import clean
from pkpo_jax.tasks.math_answers.tree import Node, integer

_FORMULA = re.compile(
    r"(?<!\\)\$\$?(.+?)(?<!\\)\$\$?|\\\[(.+?)\\\]|\\\((.+?)\\\)"
    r"|\\begin\{(?:align|gather|equation)\*?\}(.+?)\\end",
    re.DOTALL,
)
# Questions in plain text have fractions, decimals and percentages outside of formulas.
_NUMERAL = re.compile(r"(?:[0-9]+ )?[0-9]+/[0-9]+|[0-9]*\.?[0-9]+\\?%|[0-9]*\.[0-9]+")


def formulas(question: str) -> list[str]:
    """Returns the formulas of a question, and the sides of its equations and parts of its lists."""
    found = [next(filter(None, match)) for match in _FORMULA.findall(question)]
    return [*found, *(part for text in found for part in re.split(r"[=,<>&]|\\[lg]eq?\b", text))]


def copied(question: str, gold: Node, answer: Node) -> bool:
    """Returns whether an answer is a formula of the question.

    Integers and names are no copies, and neither is the gold answer itself.
    """
    answer = last = simplified(answer)
    if answer.kind == "relation" and answer.args[0][-1] in ("=", "~"):
        last = answer.args[1][-1]
    bare = _bare(last)
    if _is_plain(last) or bare == _bare(named(simplified(gold))[1]):
        return False
    return bool({bare, _bare(answer)} & _trees(question))


@functools.lru_cache(maxsize=256)
def _trees(question: str) -> frozenset[Node]:
    texts = {text.strip() for text in formulas(question)[:300] + _NUMERAL.findall(question)[:300]}
    nodes = (read(clean(text)) for text in texts if len(text) <= 500)
    return frozenset(_bare(simplified(node)) for node in nodes if node is not None)


def _is_plain(node: Node) -> bool:
    if node.kind == "number":
        return node.args[1] == 0
    if node.kind in ("neg", "group", "list", "set", "quantity", "degree"):
        return all(_is_plain(part) for part in node.args if isinstance(part, Node))
    return node.kind in ("symbol", "words", "base")


def _bare(node: Node) -> Node:
    """Returns a tree without units, places and the order of operands, with signs in front."""
    kind, args = node
    if kind in ("quantity", "degree") or (kind == "set" and len(args) == 1):
        return _bare(args[0])
    if kind == "number":
        return integer(args[0])
    parts = [_bare(part) if isinstance(part, Node) else part for part in args]
    if kind == "root":
        kind, parts = "pow", [parts[0], Node("div", (integer(1), parts[1]))]
    if kind in ("neg", "mul", "div"):
        return _signed(kind, parts)
    if kind == "add":
        parts.sort(key=repr)
    return Node(kind, tuple(parts))


def _signed(kind: str, parts: Sequence[Node]) -> Node:
    """Returns a product, fraction or negative of bare parts, with at most one sign, in front."""
    negative = (kind == "neg") ^ (sum(part.kind == "neg" for part in parts) % 2 == 1)
    parts = [part.args[0] if part.kind == "neg" else part for part in parts]
    if kind == "mul":
        parts.sort(key=repr)
    node = parts[0] if kind == "neg" else Node(kind, tuple(parts))
    return Node("neg", (node,)) if negative else node
