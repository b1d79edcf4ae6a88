"""Wraps another task: the policy also revises wrong answers, and tells right answers from wrong.

This is the data of REVES (arXiv 2606.18910). A policy answers a problem and revises its answer as
long as it is wrong. Of the problems that it so answers both wrongly and rightly, each wrong answer
becomes a revision prompt (what is a right answer, if this one is wrong?), and each answer a
verification prompt (is this answer right?). RL then trains on these prompts and on the problems
themselves, each of them with one response, so that a chain of revisions needs no RL of its own.

The answers come from a file, in the layout of the problems.jsonl that an evaluation writes, or from
the demonstrations of the wrapped task. The latter suit the warm start of a policy from scratch,
which has to learn how to read the prompts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import random
import string
from collections.abc import Iterator, Sequence
from typing import Any

from pkpo_jax.tasks import drawing
from pkpo_jax.tasks.base import Grade, Problem, Status, Task, literals, require
from pkpo_jax.tasks.boxed import boxed

KINDS = PROBLEM, REVISION, VERIFICATION = ("problem", "revision", "verification")
# The wrapped task demonstrates a problem at most this often, for a right and a wrong answer.
DRAWS = 64

# A policy from scratch reads these characters after an answer, and writes these verdicts.
_MARKS = {REVISION: "!", VERIFICATION: "?"}
_VERDICTS = {False: "n", True: "y"}
_INSTRUCTIONS = {
    REVISION: "This answer is wrong. Give a right one.",
    VERIFICATION: r"Is this answer right? Reason step by step, and end with \boxed{True} or "
    r"\boxed{False}.",
}
_BOXED_VERDICTS = {False: "False", True: "True"}


@dataclasses.dataclass(frozen=True)
class Revision(Task):
    """The problems of another task, with prompts to revise and to verify answers to them.

    Attributes:
      inner: the name of the wrapped task, as for `task.name`.
      options: its options that differ from their defaults, as in "digits=1, terms=3"; values are
        Python literals.
      attempts: a file of answers, on each line a JSON object with the "id" and "prompt" of a
        problem of either split, and lists of "responses" and of their "rewards". An evaluation
        of the problems and `experiments.revision_chains` write such files. Lines about other
        prompts are ignored. If it is empty, each problem has one right and one wrong demonstration
        of the wrapped task, which then grades in this process.
      kinds: the kinds of prompts to train on, some of "problem", "revision" and "verification".
      evaluate_on: the kind of prompts in the test split.
      balanced: whether to verify at most as many wrong answers to a problem as right ones. REVES
        verifies all of them; if most are wrong, RL may learn to find every answer wrong.
      instruct: whether prompts ask in English, and a verdict is a box with True or False.
        Otherwise a mark follows the answer, `!` to revise it or `?` to verify it, and a verdict is
        `y` or `n`.
    """

    inner: str = "arithmetic"
    options: str = ""
    attempts: str = ""
    kinds: tuple[str, ...] = KINDS
    evaluate_on: str = PROBLEM
    balanced: bool = False
    instruct: bool = False

    def __post_init__(self) -> None:
        kinds = f"some of {', '.join(KINDS)}, each once"
        known = set(self.kinds) <= set(KINDS) and len(set(self.kinds)) == len(self.kinds)
        require(self, self.kinds and known, "kinds", kinds)
        require(self, self.evaluate_on in KINDS, "evaluate_on", f"one of {', '.join(KINDS)}")
        require(self, self.inner != "revision", "inner", "another task")
        require(
            self,
            isinstance(self.options, str) and literals(self.options) is not None,
            "options",
            'name=value, separated by commas, as in "digits=1, terms=3"',
        )
        _ = self.wrapped  # It is made now, for its options to be checked.

    @functools.cached_property
    def wrapped(self) -> Task:
        """The wrapped task."""
        # The table of tasks holds this one, so it cannot be imported before it.
        from pkpo_jax import tasks

        try:
            known = tasks.options(self.inner)
        except ValueError as e:
            raise ValueError(str(e).replace("task.name", "task.inner")) from None
        given = literals(self.options) or {}
        if unknown := [name for name in given if name not in known]:
            raise ValueError(
                f"task.options={self.options!r} holds {unknown[0]}; the options of {self.inner} "
                f"are {', '.join(known)}."
            )
        try:
            return tasks.make({"name": self.inner, **known, **given})
        except (TypeError, ValueError) as e:
            raise ValueError(f"task.options={self.options!r}: {e}") from None

    @property
    def alphabet(self) -> str:  # pyrefly: ignore  The wrapped task decides most of it.
        added = string.printable if self.instruct else [*_MARKS.values(), *_VERDICTS.values()]
        return self.wrapped.alphabet + "".join(c for c in added if c not in self.wrapped.alphabet)

    def problems(self, split: str) -> Sequence[Problem]:
        """Returns the prompts of the split "train" or "test", those of each problem in a row."""
        kinds = self.kinds if split == "train" else (self.evaluate_on,)
        problems, found = self.wrapped.problems(split), []
        for number, attempts in enumerate(self._attempts(split, problems, kinds)):
            prompts = [self.ask(PROBLEM, problems[number])]
            wrong = [attempt for attempt, right in attempts if not right]
            unverified = wrong[len(attempts) - len(wrong) :] if self.balanced else []
            for name, (attempt, right) in enumerate(attempts):
                of_attempt = [] if right else [REVISION]
                of_attempt += [] if attempt in unverified else [VERIFICATION]
                options = {"right": right, "name": name}
                prompts += [
                    self.ask(kind, problems[number], attempt, **options) for kind in of_attempt
                ]
            found += [prompt for prompt in prompts if prompt["kind"] in kinds]
        if set(kinds) - {PROBLEM} and all(prompt["kind"] == PROBLEM for prompt in found):
            raise ValueError(
                f"task.attempts={self.attempts!r}: no {split} problem has both a right and a wrong "
                "answer there; give a file that has such answers, with the ids and prompts of "
                'these problems, or set task.kinds=("problem",) and task.evaluate_on="problem".'
            )
        return found

    def ask(
        self,
        kind: str,
        problem: Problem,
        attempt: str = "",
        *,
        right: bool = False,
        name: object = "",
    ) -> Problem:
        """Returns a prompt about a problem of the wrapped task.

        Args:
          kind: "problem", "revision" or "verification".
          problem: the problem.
          attempt: the answer to revise or to verify.
          right: whether this answer is right, which a verification should find.
          name: tells apart the prompts of one kind about one problem, in their ids.
        """
        fields = {"kind": kind, "problem": problem, "right": right}
        if kind == PROBLEM:
            return {**fields, "id": problem["id"], "prompt": problem["prompt"]}
        prompt = f"{problem['prompt']}{attempt}{_MARKS[kind]}"
        if self.instruct:
            text = problem["prompt"].strip()
            prompt = f"Problem:\n{text}\n\nAnswer:\n{attempt}\n\n{_INSTRUCTIONS[kind]}\n"
        return {**fields, "id": f"{kind} {problem['id']} {name}", "prompt": prompt}

    def grade(self, problem: Problem, response: str) -> float | Grade:
        """Returns 1 iff the verdict of a verification is right, else the wrapped task's grade."""
        if problem["kind"] == VERIFICATION:
            verdict = self._verdict(response)
            form = Status.WRONG_FORMAT if verdict is None else Status.OK
            return Grade(float(verdict == self._verdicts[problem["right"]]), form)
        grade = self.wrapped.grade(problem["problem"], response)
        if self._verdict(response) is None or isinstance(grade, Grade):
            return grade
        # The answer of such a response, see `answer`, is a verdict, for which nobody asked here.
        none = self.wrapped.answer(response) is None
        return Grade(grade, Status.WRONG_FORMAT if none else Status.OK)

    def answer(self, response: str) -> str | None:
        """Returns the verdict of a response, if it is one, or else the wrapped task's answer."""
        verdict = self._verdict(response)
        return self.wrapped.answer(response) if verdict is None else verdict

    def mode_of(self, problem: Problem, response: str) -> str | None:
        """Returns the verdict of a right verification, or else the wrapped task's mode."""
        if problem["kind"] == VERIFICATION:
            return self._verdict(response)
        return self.wrapped.mode_of(problem["problem"], response)

    def mode_count(self, problem: Problem) -> int | None:
        """Returns 1 for a verification, or else the wrapped task's count."""
        if problem["kind"] == VERIFICATION:
            return 1
        return self.wrapped.mode_count(problem["problem"])

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns the right verdict, or else the wrapped task's demonstration of the problem."""
        if problem["kind"] != VERIFICATION:
            return self.wrapped.demonstration(problem["problem"], rng)
        verdict = self._verdicts[problem["right"]]
        return f"\\boxed{{{verdict}}}" if self.instruct else verdict

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws a problem as the wrapped task does, and other prompts as text."""
        if problem["kind"] == PROBLEM:
            self.wrapped.draw(axes, problem["problem"], responses, rewards)
        else:
            drawing.draw_text(axes, problem["prompt"], responses, rewards)

    @property
    def _verdicts(self) -> dict[bool, str]:
        return _BOXED_VERDICTS if self.instruct else _VERDICTS

    def _verdict(self, response: str) -> str | None:
        text = boxed(response) if self.instruct else response
        return text if text in self._verdicts.values() else None

    def _attempts(
        self, split: str, problems: Sequence[Problem], kinds: Sequence[str]
    ) -> Iterator[list[tuple[str, bool]]]:
        """Yields the answers to each problem that prompts are about, and whether each is right.

        Answers that the wrapped task cannot read are left out, since there is nothing to verify in
        them. So are those of problems without both right and wrong ones.
        """
        needs_attempts = set(kinds) != {PROBLEM}
        read = self._read() if self.attempts and needs_attempts else {}
        for number in range(len(problems)):
            problem, found = problems[number], {}
            if self.attempts:
                found = read.get((problem["id"], problem["prompt"]), {})
            elif needs_attempts:
                found = self._demonstrated(split, problem)
            found = {a: right for a, right in found.items() if self.wrapped.answer(a) is not None}
            yield list(found.items()) if len({*found.values()}) == 2 else []

    def _demonstrated(self, split: str, problem: Problem) -> dict[str, bool]:
        """Returns the first right and the first wrong demonstration of a problem."""
        rng, found = random.Random(f"{split} {problem['id']}"), {}
        for _ in range(DRAWS):
            attempt = self.wrapped.demonstration(problem, rng)
            grade = self.wrapped.grade(problem, attempt)
            right = (grade.reward if isinstance(grade, Grade) else grade) >= 1.0
            found.setdefault(right, attempt)
            if len(found) == 2:
                break
        return {attempt: right for right, attempt in found.items()}

    def _read(self) -> dict[tuple[object, str], dict[str, bool]]:
        """Returns {(id, prompt): {answer: whether it is right}} of the file of answers."""
        path = pathlib.Path(self.attempts).expanduser()
        found: dict[tuple[object, str], dict[str, bool]] = {}
        try:
            # Strings may hold other ends of lines, which splitlines() would split at.
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as e:
            reason = e.strerror if isinstance(e, OSError) else f"it is no UTF-8: {e}"
            raise ValueError(
                f"task.attempts={self.attempts!r} cannot be read ({reason}); make it with "
                "--mode=eval --split=train, or with experiments.revision_chains."
            ) from None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                graded = zip(row["responses"], row["rewards"], strict=True)
                given = {str(a): r >= 1.0 for a, r in graded if r is not None}
                found.setdefault((row["id"], str(row["prompt"])), {}).update(given)
            except (ValueError, KeyError, TypeError) as e:
                raise ValueError(
                    f"{path}, line {number}: {type(e).__name__}: {e}; expected a JSON object with "
                    '"id", "prompt", "responses" and "rewards".'
                ) from None
        return found
