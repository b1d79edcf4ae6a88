"""Any generator of reasoning-gym (`pip install -e ".[puzzles]"`), scored by its own scorer.

The library's scorers (version 0.1.25) are not meant for text that a policy is rewarded for:
- The scorer that generators inherit gives partial credit to any text that contains the answer. If
  a generator has no scorer of its own, an answer earns 1 if it equals the puzzle's, else 0.
- Some scorers call eval() on the answer, or sympy's parse_expr, which does the same, so that the
  answer would run as code. They see only answers that consist of the characters and names of
  `_READABLE`, or are replaced, as `_EQUAL` states.
- Some accept wrong answers. The scorers of `_EQUAL` are replaced by equality; puzzle24's, which
  accepts any four numbers, is replaced by countdown's. Those that read only the start of an answer
  see only answers that are of the form of `_READABLE` as a whole.
- figlet_font's gives a tenth for each letter, so that ten letters of a longer word would be enough;
  less than the whole word earns at most 0.9.
- propositional_logic's accepts a premise as the conclusion, which is valid but no inference.
- Some raise exceptions. The answer then earns 0, and counts as an error.
Even with these characters an answer can keep sympy busy forever: set grading.workers for
simple_integration, intermediate_integration and polynomial_multiplication. No other scorer takes
more than seconds for the worst text that was tried on it.

To make its puzzles, codeio runs code that comes with it; a few of these puzzles are random, and so
cannot be answered. composite is left out because it mixes other generators, given as objects that
options cannot express.
"""

from __future__ import annotations

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

from pkpo_jax.tasks import drawing, expressions
from pkpo_jax.tasks.base import Grade, Problem, Status, Task, literals, require

INSTRUCTION = "Reason step by step, and give your final answer within <answer> and </answer>."
OPEN, CLOSE = "<answer>", "</answer>"

# Answers longer than 4 times the puzzle's own plus this many characters are wrong without being
# scored.
SLACK = 2_000
# At most this many puzzles are generated per requested problem; word_ladder has 20,000 in all.
DRAWS = 8

# These generators are scored by equality, whatever their own scorers do.
_EQUAL = {
    # These scorers call eval() on answers, for at most a tenth of the reward.
    *("binary_matrix", "spiral_matrix", "string_insertion"),
    # These scorers accept wrong answers: any text, "0", any text whose first number is right, or
    # any text that starts with the answer.
    *(
        "game_of_life_halting",
        "coin_flip",
        "gsm_symbolic",
        "letter_jumble",
        "spell_backward",
        "word_sorting",
    ),
}
# These scorers give partial credit to text that contains the answer, which is not granted here.
_CONTAINING = {"chain_sum", "circuit_logic", "codeio", "manipulate_matrix", "products", "tsumego"}

# These generators sample from sets of strings, whose order differs from process to process.
_UNORDERED = {"isomorphic_strings", "polynomial_multiplication", "ransom_note"}

# The pattern allows no name, attribute or call, and neither ** nor //, which the puzzles forbid.
_ARITHMETIC = r"(?:[-+() 0-9]|\*(?!\*)|/(?!/))*"
_ALGEBRA = (
    r"(?:[-+*/() ]|[0-9]+(?:\.[0-9]+)?(?![.\w])"
    r"|\b(?:a?(?:sin|cos|tan)h?|exp|log|ln|sqrt|pi|[A-Za-z])\b)*"
)
# A move that is repeated 999999999 times, as in R999999999, would exhaust the memory or the time.
_SMALL = r"(?:\D|\d(?!\d\d))*"
_READABLE = {
    "complex_arithmetic": r"[-+.0-9ij() ]*",  # The scorer would accept nan.
    "countdown": _ARITHMETIC,
    # The scorer would accept anything after the answer.
    "fraction_simplification": (
        r"[$ ]*(?:[0-9]+ */ *[0-9]+|\\d?frac *\{ *[0-9]+ *\} *\{ *[0-9]+ *\})[$ ]*"
    ),
    "intermediate_integration": _ALGEBRA,
    "n_queens": r"[_Q\s]*",
    "polynomial_multiplication": _ALGEBRA,
    "puzzle24": _ARITHMETIC,
    "rubiks_cube": _SMALL,
    "rush_hour": _SMALL,
    "simple_integration": _ALGEBRA,
    # The scorer would accept any text after the number of days, and more parts of a time.
    "time_intervals": (
        r"[0-9]+(?: days?)?|(?:[0-9]+ days, )?[0-9]+:[0-9]+(?::[0-9]+(?:\.[0-9]{3})?)?"
    ),
}


# These ask for an expression of given numbers, each used once, whose value is the target.
_EXPRESSIONS = {"countdown", "puzzle24"}


@dataclasses.dataclass(frozen=True)
class Puzzles(Task):
    """The puzzles of one generator.

    Attributes:
      puzzle: the generator's name: one of `reasoning_gym.factory.DATASETS`.
      options: options of the generator that differ from its defaults, as in
        "min_numbers=3, max_numbers=3"; values are Python literals.
      template: the prompt, with the fields {question} and the entries of the puzzles' metadata. A
        tiny policy learns "{target}:{numbers}" sooner than a page of English.
      reward: "threshold" is 1 iff the score is at least `threshold`, else 0; "score" is the score.
      threshold: the score that "threshold" requires, more than 0 and at most 1.
      train_problems, test_problems: sizes of the splits. The train split contains no prompt of the
        test split.
      seed: the seed of the puzzles, independent of the run's seed.
      instruct: whether the prompt asks for reasoning and an answer in <answer></answer>; otherwise
        the whole response is the answer.
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
            isinstance(self.options, str) and literals(self.options) is not None,
            "options",
            'name=value, separated by commas, as in "min_numbers=3, max_numbers=3"',
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A worker loads the scorer while it starts, before the clock of its first answer runs.
        self.__dict__.update(state)
        _scorer(self.puzzle, self.options)

    def problems(self, split: str) -> Sequence[Problem]:
        """Returns the puzzles of "train" or "test", made on first use, in milliseconds each."""
        return _splits(self)[split]

    def grade(self, problem: Problem, response: str) -> float | Grade:
        """Returns the score of the answer, between 0 and 1, or whether it reaches the threshold.

        An answer that equals the puzzle's own earns 1 in any case.
        """
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
        """Returns the response, or the content of its last answer tags, without outer spaces."""
        if not self.instruct:
            return response.strip() or None
        end = response.rfind(CLOSE)
        start = response.rfind(OPEN, 0, max(end, 0))
        return response[start + len(OPEN) : end].strip() or None if start >= 0 else None

    def mode_of(self, problem: Problem, response: str) -> str | None:
        """Names a right answer: an expression by its canonical form, any other by its text."""
        answer = self.answer(response)
        if self.puzzle in _EXPRESSIONS and answer is not None:
            return expressions.canonical(answer) or answer
        return answer

    def mode_count(self, problem: Problem) -> int | None:
        """Counts the forms that solve a puzzle of up to 4 numbers; None for other puzzles."""
        if self.puzzle not in _EXPRESSIONS:
            return None
        given = problem["entry"]["metadata"]
        found = expressions.solutions(tuple(sorted(given["numbers"])), given.get("target", 24))
        # The puzzle's own answer is right even where its target is rounded.
        return None if found is None else len(found | {self.mode_of(problem, self._own(problem))})

    def _own(self, problem: Problem) -> str:
        return f"{OPEN}{problem['answer']}{CLOSE}" if self.instruct else problem["answer"]

    def demonstration(self, problem: Problem, rng: random.Random) -> str:
        """Returns the puzzle's own answer; raises ValueError if it has none."""
        super().demonstration(problem, rng)
        return self._own(problem)

    def draw(
        self, axes: Any, problem: Problem, responses: Sequence[str], rewards: Sequence[float]
    ) -> None:
        """Draws the puzzle, its own answer if it has one, and the first responses, as text."""
        drawing.draw_text(axes, problem["prompt"], responses, rewards, problem.get("answer"))


@functools.lru_cache(maxsize=2)
def _splits(task: Puzzles) -> dict[str, list[Problem]]:
    """Returns both splits, made by one generator.

    A generator seeds each puzzle with its own seed plus the puzzle's number, so that generators
    with nearby seeds would make the same puzzles.
    """
    if task.puzzle in _UNORDERED and not os.environ.get("PYTHONHASHSEED", "random").isdigit():
        raise ValueError(
            f"task.puzzle={task.puzzle!r} makes different puzzles in each process, whatever the "
            "seed; set the environment variable PYTHONHASHSEED=0."
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
                    f"draws whose prompts are not in the test split{last}; lower it or "
                    "task.test_problems, or widen task.options."
                )
            try:
                with _seeded(seed + number):
                    entry = dataset[number]
            # If few puzzles satisfy the options, the generator gives up on some numbers.
            except Exception as e:
                last = f" ({task.puzzle} says: {e})"
                continue
            prompt = _prompt(task, entry)
            if prompt not in held_out:
                problem = {"id": len(splits[split]), "prompt": prompt, "entry": entry}
                # Some puzzles have only a scorer and no answer.
                own = str(entry["answer"] or "").strip()
                splits[split].append(problem | ({"answer": own} if own else {}))
        held_out = {problem["prompt"] for problem in splits["test"]}
    return splits


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Sets the seed of Python's shared generator, which list_functions uses beside its own."""
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
    """Returns the scorer of answers that differ from the puzzle's own; None if all are wrong."""
    dataset = _dataset(puzzle, options, seed=0, size=1)
    if puzzle == "puzzle24":
        score = _dataset("countdown", "", seed=0, size=1).score_answer
        return lambda answer, entry: score(answer, {"metadata": entry["metadata"] | {"target": 24}})
    if puzzle == "figlet_font":
        return lambda answer, entry: (
            dataset.score_answer(answer, entry)
            if answer.replace(" ", "").lower() == entry["answer"].lower()
            else min(0.9, dataset.score_answer(answer, entry))
        )
    inherited = _reasoning_gym().dataset.ProceduralDataset.score_answer
    if puzzle in _EQUAL or type(dataset).score_answer is inherited:
        return None
    return dataset.score_answer


def _dataset(puzzle: str, options: str, *, seed: int, size: int) -> Any:
    """Makes the generator; ValueError if it does not exist, or does not accept the options."""
    datasets = _reasoning_gym().factory.DATASETS
    names = sorted(set(datasets) - {"composite"})
    if puzzle not in names:
        close = difflib.get_close_matches(str(puzzle), names, 3) or names
        raise ValueError(
            f"task.puzzle={puzzle!r}; expected a generator of reasoning-gym, such as "
            f"{', '.join(close)}."
        )
    given = literals(options) or {}
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


@functools.cache
def _reasoning_gym() -> Any:
    """Imports the library on first use, since that takes a second or two and one task needs it."""
    try:
        import reasoning_gym
    except ImportError as e:
        raise ImportError(
            f'the task puzzles needs reasoning-gym ({e}); pip install -e ".[puzzles]"'
        ) from e
    return reasoning_gym
