"""Splits clean answer text into tokens, and distinguishes words from products of letters."""

from __future__ import annotations

import re

from pkpo_jax.tasks.math_answers import units

# A token is its kind (number, command, text, char; "end" after the last token) and its text.
Token = tuple[str, str]

_TOKEN = re.compile(
    r"\s+|(?P<text>\\text ?\{(?P<words>[^{}]*)\})|(?P<command>\\[a-zA-Z]+|\\[{}%|])"
    r"|(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+|\.(?=\\overline))|(?P<word>[a-zA-Z]+)|(?P<char>.)",
    re.DOTALL,
)
_GREEK_TEXT = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho
sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell pi
infty
"""
_FUNCTIONS_TEXT = """
sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm min max det arg Re
Im
"""
# These are the names of the commands for symbols and for functions.
SYMBOLS, FUNCTIONS = frozenset(_GREEK_TEXT.split()), frozenset(_FUNCTIONS_TEXT.split())
_TYPED = {
    **{name: f"\\{name}" for name in ("pi", "sqrt", "theta", "alpha", "beta", "phi", "frac")},
    **dict.fromkeys(("infinity", "Infinity", "infty", "inf", "oo"), r"\infty"),
    **dict.fromkeys(("degrees", "degree"), r"\degree"),
    "percent": r"\%",
    "union": r"\cup",
}
# Such runs of letters are products of variables, since they spell no English word.
_PRODUCT = re.compile("[abc]+|[mn]+|[pqrst]+|[uvwxyz]+|[b-df-hj-np-tv-xz]{2,3}")


def are_words(text: str) -> bool:
    """Returns whether clean text consists of words, and has nothing to compute."""
    bare = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text)
    if not re.fullmatch(r"""[a-zA-Z0-9 ,.:;'"&()/?!-]+""", bare) or re.match(r"[-.0-9(]", bare):
        return False
    known = {*_TYPED, *FUNCTIONS, "or", "and"}
    runs = [run for run in re.findall("[a-zA-Z]+", bare) if len(run) > 1 and run not in known]
    return any(not _PRODUCT.fullmatch(run) for run in runs) or (
        bare != text and not runs and bare.strip().isalpha() and bare.strip() not in ("or", "and")
    )


def tokens(text: str) -> list[Token]:
    """Splits clean text into tokens."""
    found: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if match["text"] is not None:
            found.append(("text", match["words"].strip()))
        elif kind == "word":
            spaced = match.start() > 0 and text[match.start() - 1] == " "
            last = found[-1] if found else ("", "")
            if last[0] == "text" and last[1] not in ("or", "and") and len(token) > 1:
                # A unit may have several words, as in "miles per hour".
                found.append(("text", token))
            else:
                found += _word(token, spaced, last[0] == "number")
        elif kind is not None:
            found.append((kind, token))
    return found


def _word(run: str, spaced: bool, counted: bool) -> list[Token]:
    """Splits a run of letters: a name, a unit, a word, or a product of single letters.

    Args:
      run: the letters.
      spaced: whether a space precedes them.
      counted: whether a number precedes them.
    """
    if run in _TYPED:
        return [("command", _TYPED[run])]
    if run in FUNCTIONS:
        return [("command", f"\\{run}")]
    if run in ("or", "and") or (len(run) > 1 and units.is_unit(run)):
        return [("text", run)]
    wordy = spaced and len(run) > 2 and re.search("[aeiou]", run)
    if wordy if counted else len(run) > 3:
        # The letters of 24abcd are variables, but those of "24 apples" are a unit.
        return [("text", run)]
    for name in ("pi", "sqrt"):
        # This covers xpi as well as 12pi r, whose letters are separated by a space.
        if run.endswith(name):
            return [*(("char", c) for c in run[: -len(name)]), ("command", f"\\{name}")]
    return [("char", letter) for letter in run]


class Unreadable(Exception):
    """The text does not follow the grammar."""


class Cursor:
    """A position in a list of tokens.

    Attributes:
      tokens: the tokens.
      at: the index of the next token.
    """

    def __init__(self, tokens: list[Token]) -> None:
        self.tokens, self.at = tokens, 0

    def peek(self) -> Token:
        """Returns the next token without taking it."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, *values: str) -> str | None:
        """Takes the next token if it has one of the values, or any value if none are given."""
        kind, value = self.peek()
        if kind == "end" or (values and (value not in values or kind in ("text", "number"))):
            return None
        self.at += 1
        return value

    def need(self, value: str) -> None:
        """Takes the next token; raises Unreadable if it does not have this value."""
        if not self.take(value):
            raise Unreadable(value)

    def raw(self) -> str:
        """Takes one token or a group in braces, and returns its text."""
        if not self.take("{"):
            value = self.take()
            if value is None or value in "{}":
                raise Unreadable("subscript")
            return value
        depth, parts = 1, []
        while depth:
            value = self.take()
            if value is None:
                raise Unreadable("}")
            depth += {"{": 1, "}": -1}.get(value, 0)
            parts.append(value)
        return "".join(parts[:-1])
