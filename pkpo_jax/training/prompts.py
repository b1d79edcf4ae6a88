r"""Few-shot prompts and stop strings, with which a model without instruction tuning does any task.

A policy reads the prompt of a problem in `prompt.template`, after `prompt.shots` worked examples,
and its response ends at the first string of `prompt.stop`. With two shots, the template
"Q: {prompt}\nA: {response}\n\n" and the stop string "\n", the policy reads and continues

    Q: 1+2=
    A: 3

    Q: 9-5=
    A: 4

    Q: 3+4=
    A:
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from pkpo_jax.tasks import Problem, Task, grading
from pkpo_jax.training.config import ConfigError, Prompt


class Example(NamedTuple):
    """A worked example: the prompt of a problem, and a right response to it."""

    prompt: str
    response: str


class Template(NamedTuple):
    """A parsed `prompt.template`: `before`, the prompt, `after`, `gap`, the response and `end`.

    A prompt of the policy ends with `after`. The spaces of `gap` are a part of what the policy
    writes, because tokens of words start with their space.
    """

    before: str
    after: str
    gap: str
    end: str

    @classmethod
    def parse(cls, template: str) -> Template:
        """Parses a template; raises a ConfigError unless it has both fields, once each.

        >>> Template.parse("Q: {prompt} A: {response}; ")
        Template(before='Q: ', after=' A:', gap=' ', end='; ')
        """
        parts = re.fullmatch(r"(.*)\{prompt\}(.*?)( *)\{response\}(.*)", template, re.DOTALL)
        if not parts or template.count("{prompt}") + template.count("{response}") > 2:
            raise ConfigError(
                f"prompt.template={template!r}; expected one {{prompt}} and, after it, one "
                "{response}, as in 'Q: {prompt}\\nA: {response}\\n\\n'."
            )
        return cls(*parts.groups())


class PromptTokenizer:
    """A policy's tokenizer that reads and writes texts as the config section `prompt` says.

    Args:
      tokenizer: the policy's own tokenizer, see `pkpo_jax.policy.tokenizers`.
      options: the config section.
      examples: the worked examples that precede every prompt.

    Attributes:
      stop_tokens: the tokens that end a response: those of `tokenizer`, and each token whose text
        contains a string of `prompt.stop`.

    Raises:
      ConfigError: no token contains one of the stop strings.
    """

    def __init__(self, tokenizer: Any, options: Prompt, examples: Sequence[Example] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(options.stop)
        self._template = t = Template.parse(options.template)
        shown = [t.before + e.prompt + t.after + t.gap + e.response + t.end for e in examples]
        self._examples = "".join(shown)
        self.vocab_size = tokenizer.vocab_size
        self.bos_id, self.eos_id = tokenizer.bos_id, tokenizer.eos_id
        self.stop_tokens = (*tokenizer.stop_tokens, *_containing(tokenizer, self._stop))

    def text(self, prompt: str) -> str:
        """Returns the whole text that the policy reads for the prompt of a problem."""
        return self._examples + self._template.before + prompt + self._template.after

    def encode_prompt(self, prompt: str) -> list[int]:
        """Returns BOS followed by the ids of the whole text of a prompt."""
        return self._tokenizer.encode_prompt(self.text(prompt))

    def encode(self, response: str) -> list[int]:
        """Returns the ids of a response, without BOS or EOS."""
        return self._tokenizer.encode(self._template.gap + response)

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of a response up to its end, without the template's spaces before it.

        It ends at the first stop string, even if that is spread over several tokens.
        """
        stop_tokens = self._tokenizer.stop_tokens
        text = self._tokenizer.decode([i for i in ids if i not in stop_tokens])
        ends = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        return text[: min(ends, default=len(text))].removeprefix(self._template.gap)


def worked_examples(
    task: Task, train: Sequence[Problem], held_out: Sequence[Problem], options: Prompt
) -> tuple[list[Example], list[Problem]]:
    """Chooses `prompt.shots` worked examples, and returns them and the other training problems.

    The examples are training problems with the task's demonstrations. Demonstrations for the SFT
    warm start may be wrong on purpose, so each is graded, and only right ones are taken. No example
    has the prompt of a held-out problem or of another example.

    Raises:
      ConfigError: there are too few such problems, or a demonstration could not be graded.
      ValueError: the task has no demonstrations.
    """
    if not options.shots:
        return [], list(train)
    rng, grader = random.Random(options.seed), grading.Grader(task)
    examples: dict[str, str] = {}
    others = {problem["prompt"] for problem in held_out}
    for problem in rng.sample(train, len(train)):
        prompt = problem["prompt"]
        if prompt in others or prompt in examples:
            continue
        response = task.demonstration(problem, rng)
        reward = grader.grade([problem], [[response]]).rewards.item()
        if math.isnan(reward):
            raise ConfigError(
                f"prompt.shots={options.shots}: the demonstration of the training problem "
                f"{problem['id']!r} could not be graded; set prompt.shots=0, or fix the task."
            )
        if reward >= 1.0 and not any(stop in response for stop in options.stop):
            examples[prompt] = response
        if len(examples) == options.shots:
            break
    rest = [problem for problem in train if problem["prompt"] not in examples]
    if len(examples) < options.shots or not rest:
        raise ConfigError(
            f"prompt.shots={options.shots}, but {len(examples)} of the {len(train)} training "
            f"problems serve as worked examples, and others have to be left to train on; an "
            "example needs a right demonstration without a stop string, and a prompt that is not "
            "held out."
        )
    return [Example(*example) for example in examples.items()], rest


def alphabet(task: Task, options: Prompt) -> str:
    """Returns the task's alphabet and the other characters of templates and stop strings."""
    template = Template.parse(options.template)
    texts = [template.before, template.after, template.gap, *options.stop]
    if options.shots:
        texts.append(template.end)
    added = [c for c in "".join(texts) if c not in task.alphabet]
    return task.alphabet + "".join(dict.fromkeys(added))


def _containing(tokenizer: Any, stop: Sequence[str]) -> list[int]:
    """Returns the tokens whose text contains one of the strings."""
    if not stop:
        return []
    texts = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    for string in stop:
        if not any(string in text for text in texts):
            raise ConfigError(
                f"prompt.stop={tuple(stop)}: no token of the policy contains {string!r}, so none "
                "could end a response there; give shorter strings, such as a line break: "
                "--config.prompt.stop=\"('\\n',)\"."
            )
    return [i for i, text in enumerate(texts) if any(string in text for string in stop)]
