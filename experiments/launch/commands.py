"""Commands that a launcher prints or runs, and the commit that it launches."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence

# This repository is launched.
ROOT = pathlib.Path(__file__).parents[2]
# The commit is packed in this directory.
PACKED = pathlib.Path("/tmp")


class LaunchError(Exception):
    """An error in one line for the user, with an exit code: 2 if the request itself is wrong."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Command:
    """The words of a command, the reason for it, and its input. str() gives the same in bash."""

    argv: tuple[str, ...]
    why: str = ""
    stdin: str = ""

    def line(self) -> str:
        return " ".join(map(quote, self.argv))

    def __str__(self) -> str:
        text, words = self.line(), [quote(word) for word in self.argv]
        if len(text) > 100 and not self.stdin:
            first = next((i for i, w in enumerate(words) if w.startswith("-")), len(words))
            text = " \\\n    ".join([" ".join(words[:first]), *words[first:]])
        return f"{text} <<'SCRIPT'\n{self.stdin}SCRIPT" if self.stdin else text

    def show(self) -> None:
        print(f"# {self.why}\n{self}\n" if self.why else f"{self}\n", flush=True)


def quote(word: str) -> str:
    """Returns `word` quoted for bash; in --flag=value, only the value is quoted."""
    found = re.match(r"--[\w.-]+=", word)
    flag = found[0] if found else ""
    return flag + shlex.quote(word[len(flag) :])


class Shell:
    """Runs commands, and shows each before it runs for the first time."""

    def __init__(self) -> None:
        self._shown: set[Command] = set()

    def run(self, command: Command, *, capture: bool = False) -> subprocess.CompletedProcess[str]:
        """Runs a command that may fail; `capture` returns its output instead of showing it."""
        if command not in self._shown:
            self._shown.add(command)
            command.show()
        try:
            # Without a terminal as input, no command can wait for an answer.
            return subprocess.run(
                command.argv, input=command.stdin, text=True, capture_output=capture, cwd=ROOT
            )
        except FileNotFoundError:
            raise LaunchError(f"{command.argv[0]} was not found; install it first.") from None

    def do(self, command: Command) -> None:
        """Runs a command, and raises a LaunchError if it fails."""
        if code := self.run(command).returncode:
            raise LaunchError(f"{' '.join(command.argv[:5])} ... failed with exit code {code}.")


def commit(*, clean: bool) -> str:
    """Returns the commit that is checked out.

    Raises:
      LaunchError: git fails, or `clean` is True and files differ from the commit.
    """

    def git(*words: str) -> str:
        try:
            run = subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT)
        except FileNotFoundError:
            raise LaunchError("git was not found; install it first.") from None
        if run.returncode:
            raise LaunchError(f"git {words[0]}: {run.stderr.strip()}")
        return run.stdout.strip()

    if changed := git("status", "--porcelain"):
        paths = [line.split()[-1] for line in changed.splitlines()]
        message = (
            f"what runs is the last commit, and {len(paths)} file(s) differ from it, {paths[0]} "
            "for one: commit, or stash."
        )
        if clean:
            raise LaunchError(message, 2)
        print(f"# Note: {message}\n")
    return git("rev-parse", "--short=12", "HEAD")


def show_or_do(plan: Sequence[Command], execute: bool) -> None:
    """Runs the commands if `execute` is True, and prints them otherwise."""
    if not execute:
        print("# Nothing is run: this is what --execute does.\n")
    shell = Shell()
    for command in plan:
        if execute:
            shell.do(command)
        else:
            command.show()


def main(launch: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Runs a launcher, prints its errors, and returns the exit code."""
    try:
        launch(argv)
    except LaunchError as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return e.code
    except KeyboardInterrupt:
        print("\ninterrupted: everything that was created still exists.", file=sys.stderr)
        return 130
    return 0
