"""Extracts the code blocks of a response, parsed as CommonMark by markdown-it-py."""

from __future__ import annotations

import bisect
import functools
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

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
    """Returns three parsers of blocks, from the strictest to the most tolerant.

    Only the first treats indented code as a block, so that the others accept fences with any
    indentation, and the third recognises no lists or quotations. None parses HTML, for a line such
    as <answer> would hide the fence that follows.
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
    parsers[1].disable("code")
    parsers[2].disable(["code", "list", "blockquote"])
    return parsers


def require() -> None:
    """Raises ImportError if markdown-it-py is not installed."""
    _parsers()


class _Block(NamedTuple):
    """A block of code: its first line and the line after its last, its language, and its text."""

    start: int
    end: int
    language: str
    code: str


def blocks(response: str) -> list[str]:
    """Returns the code blocks of a response that may be its program, the likeliest last.

    These are the blocks in their order, as several readers see them. One after the other is less
    strict: about indentation, lists and quotations, then about what else is on the line of a fence.
    What a reader sees within a block of a stricter one is less likely than that block. A fence that
    names another language is less likely than one that names Python or no language. Interactive
    sessions, which start with >>>, are not programs. Indented code counts only if no reader sees a
    fence.
    """
    text = re.sub("\r\n?", "\n", _end(response))
    parsed = [parser.parse(text) for parser in _parsers()]
    readings = [[_block(t) for t in tokens if t.type == "fence"] for tokens in parsed]
    readings.append([*_loose_blocks(text)])
    if not any(readings):
        readings = [[_block(t) for t in parsed[0] if t.type == "code_block"]]
    placed = []
    for number, reading in enumerate(readings):
        for block in reading:
            within = (_start_around(block.start, stricter) for stricter in readings[:number])
            placed.append((min([block.start, *within]), -number, block))
    found: dict[bool, list[str]] = {False: [], True: []}
    for _, _, block in sorted(placed):
        code = block.code.removeprefix("\ufeff")
        if code.strip() and not code.lstrip().startswith(">>>"):
            found[not block.language or bool(_PYTHON.match(block.language))].append(code)
    return list(dict.fromkeys(reversed([*found[False], *found[True]])))[::-1]


def _block(token: Token) -> _Block:
    start, end = token.map or (0, 0)
    return _Block(start, end, token.info.strip(), token.content)


def _start_around(line: int, reading: list[_Block]) -> int:
    """Returns the first line of the block that a line is in, or the line itself."""
    place = bisect.bisect_right(reading, line, key=lambda block: block.start) - 1
    return reading[place].start if place >= 0 and line < reading[place].end else line


def _loose_blocks(text: str) -> Iterator[_Block]:
    """Yields the blocks between lines with three backticks anywhere, as after `Here it is:`.

    A line with a tag of Python opens a block, even if another one has not been closed. Commands of
    a notebook, such as `!pip install`, are left out.
    """
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate([*text.split("\n"), "```"]):
        before, marks, after = line.partition("```")
        if not marks:
            lines.append(line)
            continue
        if opened:
            start, left, language = opened
            if before.strip():
                lines.append(before)
            # The indentation of the fence is taken off its lines, as CommonMark does.
            width = 0 if left.strip(" \t0123456789.)-*+") else len(left)
            kept = [line for line in lines if not line.startswith(("!", "%"))]
            code = [line[min(width, len(line) - len(line.lstrip(" \t"))) :] for line in kept]
            yield _Block(start, number + 1, language, "\n".join([*code, ""]))
        opens = "`" not in after and (not opened or _PYTHON.match(after))
        opened, lines = (number, before, after.strip()) if opens else None, []


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
