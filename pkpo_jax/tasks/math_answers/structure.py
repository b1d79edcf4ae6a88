r"""Unifies trees of one meaning: inequalities become intervals, \pm and "or" become lists."""

from __future__ import annotations

from pkpo_jax.tasks.math_answers.tree import INTEGERS, Node, integer

_INFINITY = Node("symbol", ("infty",))
_INFINITIES = (_INFINITY, Node("neg", (_INFINITY,)))
_REALS = Node("group", ("(", ")", Node("neg", (_INFINITY,)), _INFINITY))
_DIFFERENTIAL = Node("symbol", ("d",))
_FUNCTIONS = frozenset("fghpqPQFG")
_REVERSED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


def simplified(node: Node) -> Node:
    r"""Rewrites inequalities as intervals, x \in S as S, and a \pm b as the list of both values.

    x \ne 1 and S \setminus \{1\} become unions.
    """
    kind, args = node
    if kind == "relation":
        signs, sides = args
        if signs == ("in",) and is_name(sides[0]):
            return simplified(sides[1])
        if signs == ("=",) and is_name(sides[0]) and _has_pm(sides[1]):
            return simplified(sides[1])
        if signs == ("!=",) and is_name(sides[0]):
            return _punctured(_REALS, sides[1]) or node
        return _interval(signs, sides)[1] or node
    if kind == "without" and args[1].kind == "set" and len(args[1].args) == 1:
        return _punctured(args[0], args[1].args[0]) or node
    if kind == "words" and args[0] in ("all real numbers", "all reals"):
        return _REALS
    if kind in ("list", "and", "set"):
        return _listed(node)
    if _has_pm(node):
        both = tuple(_signed(node, sign) for sign in (1, -1))
        return Node("list", both)
    return node


def _listed(node: Node) -> Node:
    """Simplifies a list or set: the parts, and relations that make one interval or union."""
    kind = node.kind
    args = tuple(part for part in node.args if not _is_domain(part)) or node.args
    if len(args) == 1 and kind != "set":
        return simplified(args[0])
    if kind == "and" and any(_interval(*part.args)[1] for part in args):
        return _intersection(args) or node
    kind = "set" if kind == "set" else "list"
    parts = [simplified(part) for part in args]
    intervals = all(
        new.kind in ("group", "union") and old.kind == "relation"
        for old, new in zip(args, parts, strict=True)
    )
    if kind == "list" and intervals and len(names(node)) < 2:
        kind = "union"
    flat = []
    for part in parts:
        # The elements of a set may be sets.
        inner = part.kind == "list" or part.kind == kind == "union"
        flat += part.args if inner else [part]
    return Node(kind, tuple(flat))


def names(node: Node) -> frozenset[Node]:
    r"""Returns what a relation, or a list of them, states the values of: x in x > 2 or x \in S."""
    if node.kind in ("list", "and"):
        return frozenset().union(*(names(part) for part in node.args if not _is_domain(part)))
    if node.kind != "relation":
        return frozenset()
    signs, sides = node.args
    if signs in (("in",), ("!=",)):
        name = sides[0] if is_name(sides[0]) else None
    else:
        first = Node("relation", (signs[:1], sides[:2]))
        name = _interval(signs, sides)[0] or named(first)[0]
    if name is None:
        return frozenset()
    return frozenset(name.args[2:] if name.kind == "group" else (name,))


def named(node: Node) -> tuple[Node | None, Node]:
    """Returns the variable (or point, or function) of an assignment and its value.

    Other nodes are returned unchanged, with None as their variable.
    """
    if node.kind != "relation" or node.args[0] != ("=",):
        return None, node
    left, right = node.args[1]
    if is_name(left) and not _occurs(left, right):
        return left, right
    if right.kind == "symbol" and is_name(right) and not _occurs(right, left):
        return right, left
    return None, node


def is_name(node: Node) -> bool:
    """Returns whether a side of an equation can name the other side: x, f(x), (x, y), dy/dx."""
    if node.kind == "symbol":
        return node.args[0] not in ("pi", "e", "i", "infty")
    if node.kind == "group":
        return all(is_name(part) for part in node.args[2:])
    if node.kind == "div":
        return all(part.kind == "mul" and part.args[0] == _DIFFERENTIAL for part in node.args)
    # The value of a function, such as f(x) or f^{-1}(x), is parsed as a product.
    return node.kind == "mul" and len(node.args) == 2 and _is_function(node.args[0])


def _is_variable(node: Node) -> bool:
    return node.kind != "group" and is_name(node)


def _is_function(node: Node) -> bool:
    if node.kind == "pow" and node.args[1] == Node("neg", (integer(1),)):
        node = node.args[0]
    return node.kind == "symbol" and node.args[0].rstrip("'") in _FUNCTIONS


def is_label(node: Node) -> bool:
    r"""Returns whether a side of an equation names a quantity, as AB and \cos x do.

    It contains no number and no sum. A product has to be one of points, for a question may well
    state xy = 0 or a + b = 0. A fraction is one of labels.
    """
    if node.kind == "symbol":
        return is_name(node)
    if node.kind == "call":
        return any(isinstance(part, Node) and is_label(part) for part in node.args)
    if node.kind == "div":
        return all(part.kind == "mul" and is_label(part) for part in node.args)
    points = node.kind == "mul" and all(part.kind == "symbol" for part in node.args)
    return points and node.args[-1].args[0].isupper()


def point(node: Node) -> Node:
    """Returns the point given by x = 1, y = 2 or (x, y) = (1, 2); other nodes unchanged."""
    pairs = [named(part) for part in node.args] if node.kind == "list" else []
    name, value = named(node)
    if name and name.kind == value.kind == "group" and len(name.args) == len(value.args):
        pairs = list(zip(name.args[2:], value.args[2:], strict=True))
    known = [(name, value) for name, value in pairs if name is not None]
    if len({name for name, _ in known}) < max(2, len(pairs)):
        return node
    # Points are written in the order of the alphabet; that of other names is taken as it is.
    if all(name.kind == "symbol" and len(name.args[0]) == 1 for name, _ in known):
        known.sort(key=lambda pair: pair[0].args)
    return Node("group", ("(", ")", *(value for _, value in known)))


def _occurs(name: Node, node: Node) -> bool:
    # The arguments of a function may occur in its value, and so do those of a derivative.
    if name.kind in ("mul", "div"):
        return False
    if node == name:
        return True
    parts = name.args[2:] if name.kind == "group" else ()
    inner = [part for part in node.args if isinstance(part, Node)]
    return any(_occurs(part, node) for part in parts) or any(_occurs(name, n) for n in inner)


def _punctured(interval: Node, point: Node) -> Node | None:
    """Returns an interval without one point inside it, as a union; None for others."""
    if interval.kind != "group" or len(interval.args) != 4 or has_variable(point):
        return None
    opening, closing, low, high = interval.args
    below, above = (opening, ")", low, point), ("(", closing, point, high)
    return Node("union", (Node("group", below), Node("group", above)))


def _intersection(relations: tuple[Node, ...]) -> Node | None:
    """Returns the interval of x > 2 and x < 5; None for other relations joined by "and"."""
    rays = [_interval(*relation.args) for relation in relations]
    if len(rays) != 2 or rays[0][0] != rays[1][0]:
        return None
    below, above = (
        next((n for _, n in rays if n is not None and n.args[side] in _INFINITIES), None)
        for side in (2, 3)
    )
    if below is None or above is None or below == above:
        return None
    return Node("group", (above.args[0], below.args[1], above.args[2], below.args[3]))


def _interval(
    signs: tuple[str, ...], sides: tuple[Node, ...]
) -> tuple[Node, Node] | tuple[None, None]:
    """Returns the variable and interval of an inequality such as 1 < x <= 2 or x > 3.

    Other relations give (None, None).
    """
    if not signs or any(sign not in _REVERSED for sign in signs) or len(signs) > 2:
        return None, None
    if signs[0].startswith(">"):
        signs, sides = tuple(_REVERSED[s] for s in reversed(signs)), tuple(reversed(sides))
    if any(not sign.startswith("<") for sign in signs):
        return None, None
    if len(signs) == 1 and _is_variable(sides[0]):
        bounds = ("(", _closing(signs[0]), Node("neg", (_INFINITY,)), sides[1])
        variable = sides[0]
    elif len(signs) == 1 and _is_variable(sides[1]):
        bounds, variable = (_opening(signs[0]), ")", sides[0], _INFINITY), sides[1]
    elif len(signs) == 2 and _is_variable(sides[1]):
        bounds = (_opening(signs[0]), _closing(signs[1]), sides[0], sides[2])
        variable = sides[1]
    else:
        return None, None
    # An inequality with other variables, as in y > 2x + 1, describes a region.
    if any(has_variable(bound) or _occurs(variable, bound) for bound in bounds[2:]):
        return None, None
    return variable, Node("group", bounds)


def has_variable(node: Node) -> bool:
    """Returns whether a tree contains a variable."""
    if node.kind == "symbol":
        return is_name(node)
    return any(has_variable(part) for part in node.args if isinstance(part, Node))


def _is_domain(node: Node) -> bool:
    r"""Returns whether a part of a list only states the domain of a variable: k \in \mathbb{Z}."""
    if node.kind != "relation" or node.args[0] != ("in",) or not is_name(node.args[1][0]):
        return False
    return node.args[1][1] in (INTEGERS, _REALS)


def _opening(sign: str) -> str:
    return "[" if sign == "<=" else "("


def _closing(sign: str) -> str:
    return "]" if sign == "<=" else ")"


def _has_pm(node: Node) -> bool:
    if node.kind in ("relation", "list", "set"):
        return False
    return node.kind in ("pm", "mp") or any(
        _has_pm(part) for part in node.args if isinstance(part, Node)
    )


def _signed(node: Node, sign: int) -> Node:
    r"""Returns a tree with the upper (1) or lower (-1) sign of each \pm and \mp."""
    if node.kind in ("pm", "mp"):
        inner = _signed(node.args[0], sign)
        return inner if (sign > 0) == (node.kind == "pm") else Node("neg", (inner,))
    parts = (_signed(p, sign) if isinstance(p, Node) else p for p in node.args)
    return Node(node.kind, tuple(parts))
