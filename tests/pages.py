"""The documentation's pages, their code blocks, and the commands of a shell block."""

import pathlib
import re
import shutil
import subprocess

from markdown_it import MarkdownIt

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

# What a shell block may call. In `commands`, each is a function that prints its words.
PROGRAMS = ["python", "python3.11", "pip", "pkpo-jax", "pytest", "ruff", "pyrefly", "mkdocs"]
PROGRAMS += ["git", "mkdir", "tar", "source", "pre-commit", "gcloud", "xpk", "sbatch"]


def blocks(path, language=None):
    """Returns the fenced code blocks of a page, of one language or as (language, text) of all."""
    fences = [token for token in MarkdownIt().parse(path.read_text()) if token.type == "fence"]
    found = [(token.info.strip(), token.content) for token in fences]
    return found if language is None else [text for name, text in found if name == language]


def code_spans(path):
    """Returns the texts between backquotes in a page's prose and tables."""
    tokens = MarkdownIt().enable("table").parse(path.read_text())
    inline = [child for token in tokens for child in token.children or ()]
    return [token.content for token in inline if token.type == "code_inline"]


def commands(text):
    """Returns the words of each command of a script, as bash reads them; nothing is run."""
    show = "".join(f"{name}() {{ printf '%s\\0' {name} \"$@\" $'\\n'; }}\n" for name in PROGRAMS)
    script = show + re.sub(r"^until .*$", "", text, flags=re.MULTILINE)
    run = subprocess.run(
        # A variable that no line before it sets is an error.
        [shutil.which("bash"), "-euc", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/nowhere"},
    )
    return [words.split("\0")[:-1] for words in run.stdout.split("\n\0") if words]
