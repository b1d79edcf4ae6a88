r"""Extracts the final answer of a response from its \boxed{}, the convention of MATH."""

from __future__ import annotations

import re

INSTRUCTION = r"Reason step by step, and put your final answer within \boxed{}."

# Boxes with more characters are ignored.
LONGEST_BOX = 10_000
# The pattern is greedy, so that the search goes back from the end of the text to the last box.
_LAST_BOX = re.compile(r".*\\(?:boxed|fbox)(?![a-zA-Z])\s*", re.DOTALL)
_EMPTY_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{\s*\}")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""Returns the content of the last \boxed or \fbox; None if there is none, or its brace does
    not close within `LONGEST_BOX` characters.

    An empty box counts only if all are empty, for a response may end by naming the \boxed{} that it
    was asked for. A box without braces extends to the next dollar, as in the MATH release's own
    code. The time is proportional to the length of the text.

    >>> boxed(r"not \boxed{1} but \boxed{\frac{1}{2}}"), boxed(r"$\fbox 3$."), boxed(r"\boxed{4")
    ('\\frac{1}{2}', '3', None)
    """
    box = _LAST_BOX.match(_EMPTY_BOX.sub("", text)) or _LAST_BOX.match(text)
    if box is None:
        return None
    rest = box.string[box.end() : box.end() + LONGEST_BOX]
    if not rest.startswith("{"):
        return rest.partition("$")[0].strip()
    depth = 0
    for brace in _BRACE.finditer(rest):
        # Escaped braces belong to the answer; the pattern matches them with their backslash.
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return rest[1 : brace.start()].strip()
    return None
