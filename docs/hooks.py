"""Adapts the repository's files for MkDocs: pages that live elsewhere, and docstrings."""

from __future__ import annotations

import pathlib
import posixpath
import re
import textwrap
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = pathlib.Path(__file__).parents[1]
# These files of the repository are pages and images of the site too, at these addresses. They stay
# where GitHub and the commands that write them expect them.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/study/RESULTS.md": "study/RESULTS.md",
    "experiments/study/TABLES.md": "study/TABLES.md",
    "experiments/referee/RESULTS.md": "referee/RESULTS.md",
    "experiments/referee/TABLES.md": "referee/TABLES.md",
    "experiments/pretrained/RESULTS.md": "pretrained/RESULTS.md",
    "experiments/pretrained/TABLES.md": "pretrained/TABLES.md",
}
for _folder in ("", "study/", "referee/", "pretrained/"):
    for _path in sorted((ROOT / "experiments" / f"{_folder}figures").glob("*.png")):
        _name = str(_path.relative_to(ROOT))
        ELSEWHERE[_name] = _name.removeprefix("experiments/")

# The target of a Markdown link or of an HTML image, if it is a path.
_TARGET = re.compile(r"""(\]\(|\bsrc=")(?![a-z]+:|[#/])([^)"#\s]+)""")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages and images that live outside of docs/."""
    for source, uri in ELSEWHERE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository, as GitHub follows them, into the site's."""
    sources = {uri: source for source, uri in ELSEWHERE.items()}
    uri = page.file.src_uri
    folder = posixpath.dirname(sources.get(uri, f"docs/{uri}"))

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        target = ELSEWHERE.get(target, target.removeprefix("docs/"))
        if match[1].startswith("src"):
            # MkDocs leaves HTML as it is, so the path has to be that of the built page.
            return match[1] + posixpath.relpath(
                target, page.file.dest_uri.rpartition("/")[0] or "."
            )
        return match[1] + posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return _TARGET.sub(site_link, markdown)


class Docstrings(griffe.Extension):
    """Shows formulas, examples and commented fields of the source as they are meant."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Fences the indented lines and the examples of a docstring, as neither is Markdown."""
        if obj.docstring:
            paragraphs = re.split(r"\n{2,}", obj.docstring.value)
            obj.docstring.value = "\n\n".join(map(_fenced, paragraphs))

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Gives the fields of a dataclass the comments above them as docstrings.

        A field without a comment shares that of the field before, unless it is a section.
        """
        if "dataclass" not in {str(d.callable_path).rpartition(".")[2] for d in cls.decorators}:
            return
        text = ""
        for attribute in cls.attributes.values():
            # A field may be inherited from a class in another file.
            lines = pathlib.Path(str(attribute.filepath)).read_text().splitlines()
            above, comment = (attribute.lineno or 1) - 2, []
            while lines[above].lstrip().startswith("#"):
                comment.insert(0, lines[above].lstrip().removeprefix("#").strip())
                above -= 1
            is_section = str(attribute.value).startswith(f"{attribute.annotation}(")
            text = " ".join(comment) or ("" if is_section else text)
            if text and not attribute.docstring:
                attribute.docstring = griffe.Docstring(_escaped(text), parent=attribute)


def _fenced(paragraph: str) -> str:
    """Returns a paragraph of a docstring with fences, if it is a formula or an example."""
    lines = paragraph.splitlines()
    if lines[0].startswith(">>> "):
        return "\n".join(["```pycon", *lines, "```"])
    if not all(line.startswith("  ") for line in lines):
        return _escaped(paragraph)
    text = textwrap.dedent(paragraph)
    return _escaped(text) if text.startswith("- ") else f"```text\n{text}\n```"


def _escaped(text: str) -> str:
    """Returns text in which <step> is no HTML, outside of code spans."""
    parts = text.split("`")
    parts[::2] = [re.sub("<(?=[A-Za-z/])", "&lt;", part) for part in parts[::2]]
    return "`".join(parts)
