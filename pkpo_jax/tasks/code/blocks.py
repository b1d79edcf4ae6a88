"""Extracts the code blocks of a response, parsed as CommonMark by markdown-it-py."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

# Only about this many characters at the end of a response are read: about 50,000 tokens.
LONGEST = 200_000
# A line that may open or close a block, also in a list or a quotation.
_FENCE = re.compile(
    r"^[ \t]*(?:(?:[-*+>]|\d+[.)])[ \t]+)*(`{3,}(?=[^`\n]*$)|~{3,})(.*)", re.MULTILINE
)
# A fence starts with its language: python, py, python3, Python, {.python} and so on.
_PYTHON = re.compile(r"\W*(python|py)[\d.]*(?![a-z])(?!-)", re.IGNORECASE)
_DEFINITION = re.compile(r"^(async def|def|class|@|[^\W\d]\w* *=)", re.MULTILINE)


@functools.cache
def _parsers() -> tuple[MarkdownIt, MarkdownIt, MarkdownIt]:
    """Returns three parsers of blocks, the first the most tolerant of indentation.

    The first recognises no lists or quotations. Only the third treats indented code as a block, so
    that the first two accept fences with any indentation. None parses HTML, for a line such as
    <answer> would hide the fence that follows.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as e:
        raise ImportError(
            f"the task code reads responses with markdown-it-py ({e}); "
            'pip install -e ".[code]", or set task.instruct=False.'
        ) from e
    parsers = MarkdownIt("commonmark"), MarkdownIt("commonmark"), MarkdownIt("commonmark")
    for parser in parsers:
        parser.disable(["html_block", "reference", "heading", "lheading", "hr", "inline"])
    parsers[0].disable(["code", "list", "blockquote"])
    parsers[1].disable("code")
    return parsers


def require() -> None:
    """Raises ImportError if markdown-it-py is not installed."""
    _parsers()


def blocks(response: str) -> list[str]:
    """Returns the code blocks of a response that may be its program, the likeliest last.

    A fence that names another language is less likely than one that names Python or no language.
    A block in a list or quotation is less likely if its lines lack the indentation that CommonMark
    requires. Interactive sessions, which start with >>>, are not programs. Indented code counts
    only if there is no fence.
    """
    *of_fences, of_all = _parsers()
    found: dict[bool, list[str]] = {False: [], True: []}
    text = _end(response)
    tokens = [t for p in of_fences for t in p.parse(text) if t.type == "fence"]
    for token in tokens or of_all.parse(text):
        code = token.content
        is_code = token.type in ("fence", "code_block")
        if is_code and code.strip() and not code.lstrip().startswith(">>>"):
            found[not token.info.strip() or bool(_PYTHON.match(token.info))].append(code)
    return list(dict.fromkeys(reversed([*found[False], *found[True]])))[::-1]


def _end(response: str) -> str:
    """Returns the end of a response, from a place outside its code blocks.

    If a block started within another one, the fences behind it would open and close the wrong text.
    """
    start, fence = len(response) - LONGEST, ""
    if start <= 0:
        return response
    for line in _FENCE.finditer(response):
        if line.start() >= start and not fence:
            break
        marks, rest = line.groups()
        if not fence:
            fence = marks
        elif marks.startswith(fence) and not rest.strip():
            fence = ""
            start = max(start, line.end())
    return response[start:]


def likeliest(response: str) -> str | None:
    """Returns the last block that defines something, else the last one; None without blocks."""
    found = blocks(response)
    return next((b for b in reversed(found) if _DEFINITION.search(b)), found[-1] if found else None)
