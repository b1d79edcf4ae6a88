"""The code blocks of a response, as CommonMark reads them (markdown-it-py)."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

# Characters of a response that are read, from its end: some 12,000 tokens of a policy.
LONGEST = 50_000
# A fence says its language first: python, py, python3, Python, {.python} and so on.
_PYTHON = re.compile(r"\W*(python|py)[\d.]*(?![a-z])(?!-)", re.IGNORECASE)
_DEFINITION = re.compile(r"^(async def|def|class|@|[^\W\d]\w* *=)", re.MULTILINE)


@functools.cache
def _parsers() -> tuple[MarkdownIt, MarkdownIt, MarkdownIt]:
    """Returns parsers of blocks: one that takes indentation as it comes, and two of CommonMark's.

    Only the last takes indented code for a block, so that a fence may be indented by any amount.
    HTML is none, for a line such as <answer> would hide a fence that follows.
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
    """Raises ImportError if there is no parser."""
    _parsers()


def blocks(response: str) -> list[str]:
    """Returns the code blocks of a response that may be its program, the likeliest last.

    Fences in another language are less likely than those in Python or in none that is named, and
    blocks of a list or quotation whose lines are not indented as CommonMark wants them less than
    those that are. Interactive sessions, with their prompts, are no programs. Indented code counts
    only where there is no fence.
    """
    *of_fences, of_all = _parsers()
    found: dict[bool, list[str]] = {False: [], True: []}
    tokens = [t for p in of_fences for t in p.parse(response[-LONGEST:]) if t.type == "fence"]
    for token in tokens or of_all.parse(response[-LONGEST:]):
        code = token.content
        is_code = token.type in ("fence", "code_block")
        if is_code and code.strip() and not code.lstrip().startswith(">>>"):
            found[not token.info.strip() or bool(_PYTHON.match(token.info))].append(code)
    return list(dict.fromkeys(reversed([*found[False], *found[True]])))[::-1]


def likeliest(response: str) -> str | None:
    """Returns the last block that defines something, else the last one; None without blocks."""
    found = blocks(response)
    return next((b for b in reversed(found) if _DEFINITION.search(b)), found[-1] if found else None)
