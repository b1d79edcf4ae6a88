"""The written page: blocks that a command makes, among paragraphs that people write."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

from experiments.study import files

_BLOCK = "<!-- {name}: made by a command -->\n\n{text}\n\n<!-- end of {name} -->"

_NAME = re.compile(r"<!-- (.*?): made by a command -->")


def update(page: str, blocks: Mapping[str, str]) -> str:
    """The page with every block of these names replaced, and those it lacks added at its end.

    Blocks of other names are of results that these are not: they are emptied.

    >>> page = update("Before.", {"a": "one"})
    >>> update(page, {"a": "two"}) == page.replace("one", "two")
    True
    """
    others = [name for name in _NAME.findall(page) if name not in blocks]
    for name, text in {**dict.fromkeys(others, "Not run."), **blocks}.items():
        block = _BLOCK.format(name=name, text=text.strip())
        there = re.compile(
            re.escape(f"<!-- {name}:") + ".*?" + re.escape(f"<!-- end of {name} -->"), re.DOTALL
        )
        if there.search(page):
            page = there.sub(lambda _, block=block: block, page)
        else:
            page = f"{page.rstrip()}\n\n{block}\n"
    return page


def write(path: pathlib.Path, blocks: Mapping[str, str], title: str) -> None:
    """Updates the page at `path`; where there is none, one of the blocks alone."""
    page = path.read_text() if path.exists() else f"# {title}\n"
    files.write(path, update(page, blocks))
