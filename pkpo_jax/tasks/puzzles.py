"""Any generator of reasoning-gym (`pip install -e ".[puzzles]"`), scored by its own scorer.

Its scorers, as read in 0.1.25, are not made for text that a policy is rewarded for:
- The one that generators inherit gives partial credit to any text that contains the answer. Where a
  generator has no scorer of its own, an answer is right if it equals the puzzle's, or worth 0.
- Some call eval() on it, or sympy's parse_expr, which does: it would run as code. They see only
  what is spelled in the characters and names of `_READABLE`, or are replaced, as `_EQUAL` says.
- Some take for right what is wrong: those of `_EQUAL` are replaced, as is puzzle24's, for which any
  four numbers do, by countdown's.
- Some raise. That is worth 0, and counted as an error.
Sympy can be kept busy for ever with what is spelled in these characters: set grading.workers for
simple_integration, intermediate_integration and polynomial_multiplication. No other scorer takes
more than seconds for the worst text that was tried on it.

To make its puzzles, codeio runs code that comes with it; a few of them are random, and so cannot be
answered. composite is left out, for it mixes others by objects that options cannot hold.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import functools
import math
import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pkpo_jax.tasks import drawing
from pkpo_jax.tasks.base import Grade, Problem, Status, Task, require

INSTRUCTION = "Reason step by step, and give your final answer within <answer> and </answer>."
OPEN, CLOSE = "<answer>", "</answer>"

# Answers longer than 4 times the puzzle's own and so many characters more are wrong unread.
SLACK = 2_000
# So many puzzles are drawn, at most, for one that is asked for; word_ladder has 20,000.
DRAWS = 8

# Scored by equality, whatever their scorers do.
_EQUAL = {
    # eval() of answers, for a tenth of the reward at most.
    *("binary_matrix", "spiral_matrix", "string_insertion"),
    # Any text is right; "0" is; any whose first number is; any text that starts right is.
    *(
        "game_of_life_halting",
        "coin_flip",
        "gsm_symbolic",
        "letter_jumble",
        "spell_backward",
        "word_sorting",
    ),
}
# Their own partial credit for text that contains the answer is taken away.
_CONTAINING = {"chain_sum", "circuit_logic", "codeio", "manipulate_matrix", "products", "tsumego"}

# They draw from sets of strings, which Python orders anew in each process.
_UNORDERED = {"isomorphic_strings", "polynomial_multiplication", "ransom_note"}

# No name, no attribute and no call; no power, nor //, which the puzzles do not allow.
_ARITHMETIC = r"(?:[-+() 0-9]|\*(?!\*)|/(?!/))*"
_ALGEBRA = (
    r"(?:[-+*/() ]|[0-9]+(?:\.[0-9]+)?(?![.\w])"
    r"|\b(?:a?(?:sin|cos|tan)h?|exp|log|ln|sqrt|pi|[A-Za-z])\b)*"
)
_READABLE = {
    "complex_arithmetic": r"[-+.0-9ij() ]*",  # The distance from nan is none.
    "countdown": _ARITHMETIC,
    "intermediate_integration": _ALGEBRA,
    "n_queens": r"[_Q\s]*",
    "polynomial_multiplication": _ALGEBRA,
    "puzzle24": _ARITHMETIC,
    "rubiks_cube": r"(?:\D|\d(?!\d\d))*",  # R999999999 takes all memory.
    "simple_integration": _ALGEBRA,
}


@dataclasses.dataclass(frozen=True)
class Puzzles(Task):
    """Puzzles of one generator.

    Attributes:
      puzzle: the generator's name: one of `reasoning_gym.factory.DATASETS`.
      options: the generator's own, where they are not to be its defaults, as in
        "min_numbers=3, max_numbers=3"; values are Python literals.
      template: the prompt, with the fields {question} and what the puzzles' metadata hold: a tiny
        policy learns "{target}:{numbers}" sooner than a page of English.
      reward: "threshold", 1 iff the score is at least `threshold`, else 0; or "score".
      threshold: of the score, more than 0 and at most 1.
      train_problems, test_problems: sizes of the splits. No prompt of the test split stands in the
        train split.
      seed: of the puzzles; independent of a run's seed.
      instruct: whether the prompt asks for reasoning and an answer in <answer></answer>; else all
        of a response is its answer.
    """

    puzzle: str = "countdown"
    options: str = ""
    template: str = "{question}\n"
    reward: str = "threshold"
    threshold: float = 1.0
    train_problems: int = 2048
    test_problems: int = 256
    seed: int = 0
    instruct: bool = False

    def __post_init__(self) -> None:
        require(self, self.reward in ("threshold", "score"), "reward", "threshold or score")
        require(self, 0 < self.threshold <= 1, "threshold", "0 < threshold <= 1")
        require(self, self.train_problems >= 1, "train_problems", "at least 1")
        require(self, self.test_problems >= 1, "test_problems", "at least 1")
        require(
            self,
            isinstance(self.options, str) and _literals(self.options) is not None,
            "options",
            'name=value, separated by commas, as in "min_numbers=3, max_numbers=3"',
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # In a worker, before the clock of its first answer runs.
        self.__dict__.update(state)
        _scorer(self.puzzle, self.options)

    def problems(self, split: str) -> Sequence[Problem]:
        """Puzzles of the split "train" or "test", made on first use: mostly milliseconds each."""
        return _splits(self)[split]

    def grade(self, problem: Problem, response: str) -> float | Grade:
        """The score of the answer, at least 0 and at most 1, or whether it reaches the threshold;
        1 in any case if it equals the puzzle's own answer."""
        answer, own = self.answer(response), problem.get("answer", "")
        if answer is None:
            return 0.0
        if answer == own:
            return 1.0
        scorer = _scorer(self.puzzle, self.options)
        if scorer is None or len(answer) > 4 * len(own) + SLACK:
            return 0.0
        if self.puzzle in _READABLE and not re.fullmatch(_READABLE[self.puzzle], answer):
            return 0.0
        try:
            score = float(scorer(answer, problem["entry"]))
        except Exception:
            return Grade(0.0, Status.ERROR)
        contains = self.puzzle in _CONTAINING and own.lower() in answer.lower()
        if math.isnan(score) or (score < 1 and contains):
            return 0.0
        if self.reward == "threshold":
            return float(score >= self.threshold)
        return min(1.0, max(0.0, score))

    def answer(self, response: str) -> str | None:
        """All of the response, or what its last answer tags hold, without the space around it."""
        if not self.instruct:
            return response.strip() or None
        end = response.rfind(CLOSE)
        start = response.rfind(OPEN, 0, max(end, 0))
        return response[start + len(OPEN) : end].strip() or None if start >= 0 else None

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """The puzzle's own answer; raises ValueError if it has none."""
        answer = super().demonstration(problem, rng)
        return f"{OPEN}{answer}{CLOSE}" if self.instruct else answer

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """The puzzle, its own answer if it has one, and the first responses, as text."""
        drawing.draw_text(axes, problem["prompt"], responses, rewards, problem.get("answer"))


@functools.lru_cache(maxsize=2)
def _splits(task: Puzzles) -> dict[str, list[Problem]]:
    """Both splits, from one generator, which seeds its puzzles with its seed plus their number:
    those of two seeds that are close would be the same."""
    if task.puzzle in _UNORDERED and not os.environ.get("PYTHONHASHSEED", "random").isdigit():
        raise ValueError(
            f"task.puzzle={task.puzzle!r} makes other puzzles in each process, whatever the seed; "
            "set the environment variable PYTHONHASHSEED=0."
        )
    counts = {"test": task.test_problems, "train": task.train_problems}
    draws = DRAWS * sum(counts.values())
    seed = random.Random(f"{task.seed} {task.puzzle}").randrange(2**31)
    dataset = _dataset(task.puzzle, task.options, seed=seed, size=draws)
    numbers, last = iter(range(draws)), ""
    splits: dict[str, list[Problem]] = {"test": [], "train": []}
    held_out: set[str] = set()
    for split, count in counts.items():
        while len(splits[split]) < count:
            number = next(numbers, None)
            if number is None:
                raise ValueError(
                    f"task.{split}_problems={count}, but {len(splits[split])} are found in {draws} "
                    f"draws that are no prompts of the test split{last}; lower it or "
                    "task.test_problems, or widen task.options."
                )
            try:
                with _seeded(seed + number):
                    entry = dataset[number]
            # Of options that few puzzles satisfy: the generator gives up on some.
            except Exception as e:
                last = f" ({task.puzzle} says: {e})"
                continue
            prompt = _prompt(task, entry)
            if prompt not in held_out:
                problem = {"id": len(splits[split]), "prompt": prompt, "entry": entry}
                # Some puzzles have no answer of their own, only a scorer.
                own = str(entry["answer"] or "").strip()
                splits[split].append(problem | ({"answer": own} if own else {}))
        held_out = {problem["prompt"] for problem in splits["test"]}
    return splits


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """For list_functions, which draws from Python's shared generator besides its own."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _prompt(task: Puzzles, entry: dict[str, Any]) -> str:
    fields = {**entry["metadata"], "question": entry["question"]}
    try:
        prompt = task.template.format(**fields)
    except (LookupError, AttributeError, TypeError, ValueError) as e:
        raise ValueError(
            f"task.template={task.template!r} does not fit {task.puzzle} ({type(e).__name__}: {e});"
            f" its fields are {', '.join(fields)}."
        ) from None
    return f"{prompt}\n{INSTRUCTION}\n" if task.instruct else prompt


@functools.lru_cache(maxsize=8)
def _scorer(puzzle: str, options: str) -> Callable[[str, dict[str, Any]], float] | None:
    """What scores answers that do not equal the puzzle's own; None if these are wrong."""
    dataset = _dataset(puzzle, options, seed=0, size=1)
    if puzzle == "puzzle24":
        score = _dataset("countdown", "", seed=0, size=1).score_answer
        return lambda answer, entry: score(answer, {"metadata": entry["metadata"] | {"target": 24}})
    inherited = _reasoning_gym().dataset.ProceduralDataset.score_answer
    if puzzle in _EQUAL or type(dataset).score_answer is inherited:
        return None
    return dataset.score_answer


def _dataset(puzzle: str, options: str, *, seed: int, size: int) -> Any:
    """The generator; ValueError if there is none, or if it does not take the options."""
    datasets = _reasoning_gym().factory.DATASETS
    names = sorted(set(datasets) - {"composite"})
    if puzzle not in names:
        close = difflib.get_close_matches(str(puzzle), names, 3) or names
        raise ValueError(
            f"task.puzzle={puzzle!r}; expected a generator of reasoning-gym, such as "
            f"{', '.join(close)}."
        )
    given = _literals(options) or {}
    known = {f.name for f in dataclasses.fields(datasets[puzzle][1])} - {"seed", "size"}
    if unknown := set(given) - known:
        raise ValueError(
            f"task.options={options!r} holds {', '.join(sorted(unknown))}; the options of {puzzle} "
            f"are {', '.join(sorted(known))}."
        )
    try:
        return _reasoning_gym().create_dataset(puzzle, seed=seed, size=size, **given)
    except Exception as e:
        raise ValueError(
            f"task.options={options!r} cannot be used with {puzzle}: {type(e).__name__}: {e}"
        ) from e


def _literals(options: str) -> dict[str, Any] | None:
    """The values of "name=value, name=value", as Python reads literals; None if it is not that."""
    try:
        call = ast.parse(f"f({options})", mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.args:
            return None
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None
    return values if "None" not in values else None


@functools.cache
def _reasoning_gym() -> Any:
    """The library, imported here, for it takes a second or two and one task needs it."""
    try:
        import reasoning_gym
    except ImportError as e:
        raise ImportError(
            f'the task puzzles needs reasoning-gym ({e}); pip install -e ".[puzzles]"'
        ) from e
    return reasoning_gym
