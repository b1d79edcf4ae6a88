"""Tests of few-shot prompts and stop strings, up to a run of two steps."""

import collections
import dataclasses
import json
import math

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from pkpo_jax import tasks
from pkpo_jax.policy.tokenizers import CharacterTokenizer
from pkpo_jax.reporting import inspection
from pkpo_jax.tasks import Task
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import data, loop, prompts, run_directory
from pkpo_jax.training.config import ConfigError, Prompt
from pkpo_jax.training.trainer import Trainer

LINES = "Q: {prompt}\nA: {response}\n\n"
EXAMPLES = [prompts.Example("1+2=", "3"), prompts.Example("9-5=", "4")]


class Words:
    """A tokenizer of whole words, of which some contain spaces and line breaks."""

    words = ("", "<eos>", "<bos>", "a", " a", "\n", "\n\n", "b\nc", ".", "a.", "<turn>")
    vocab_size, eos_id, bos_id, stop_tokens = len(words), 1, 2, (1, 10)

    def decode(self, ids):
        return "".join(self.words[i] for i in ids)


def test_the_text_and_the_tokens_of_a_few_shot_prompt():
    characters = CharacterTokenizer("QA:= \n+-0123456789")
    tokenizer = prompts.PromptTokenizer(characters, Prompt(template=LINES), EXAMPLES)
    text = "Q: 1+2=\nA: 3\n\nQ: 9-5=\nA: 4\n\nQ: 3+4=\nA:"
    assert tokenizer.text("3+4=") == text
    # In the order of the alphabet, Q is token 3, A is 4 and so on.
    ids = [3 + "QA:= \n+-0123456789".index(c) for c in text]
    assert tokenizer.encode_prompt("3+4=") == [2, *ids]
    # The space before {response} is written by the policy, as examples show it.
    assert tokenizer.encode("7") == characters.encode(" 7")
    assert tokenizer.decode(characters.encode(" 7")) == "7"
    assert tokenizer.decode(characters.encode("  7")) == " 7"
    assert tokenizer.decode(characters.encode("7")) == "7"
    assert tokenizer.vocab_size == characters.vocab_size
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_tokens) == (2, 1, (1,))


def test_without_shots_the_template_alone_is_left_and_by_default_the_prompt():
    characters = CharacterTokenizer("QA: \n")
    tokenizer = prompts.PromptTokenizer(characters, Prompt(template=LINES))
    assert tokenizer.text("{prompt} {response}") == "Q: {prompt} {response}\nA:"
    tokenizer = prompts.PromptTokenizer(characters, Prompt())
    assert tokenizer.text("Q") == "Q"
    assert tokenizer.encode_prompt("Q ") == characters.encode_prompt("Q ")
    assert tokenizer.encode(" A") == characters.encode(" A")
    assert tokenizer.decode([*characters.encode(" A\n"), 1, 0]) == " A\n"
    assert (
        prompts.PromptTokenizer(characters, Prompt(), EXAMPLES).text("Q") == "1+2=3\n\n9-5=4\n\nQ"
    )


@pytest.mark.parametrize(
    ("stop", "ids"),
    [
        ((), []),
        (("\n",), [5, 6, 7]),
        (("\n\n",), [6]),
        ((".", "\n\n"), [6, 8, 9]),
        (("c",), [7]),
    ],
)
def test_tokens_that_contain_a_stop_string_are_stop_tokens(stop, ids):
    tokenizer = prompts.PromptTokenizer(Words(), Prompt(stop=stop))
    assert tokenizer.stop_tokens == (1, 10, *ids)


def test_a_stop_string_that_no_token_contains_is_refused():
    for tokenizer, stop in [(Words(), ("a", "a\n")), (CharacterTokenizer("a\n"), ("a\n",))]:
        with pytest.raises(ConfigError, match="no token of the policy contains 'a\\\\n', so none"):
            prompts.PromptTokenizer(tokenizer, Prompt(stop=stop))


def decoded(ids, stop, template="{prompt}{response}"):
    tokenizer = prompts.PromptTokenizer(Words(), Prompt(stop=stop, template=template))
    (texts,) = data.decode_responses(tokenizer, np.array([[ids]]), np.array([[len(ids)]]))
    return texts[0]


def test_the_text_of_a_response_ends_at_the_first_stop_string():
    assert decoded([3, 5], ("\n",)) == "a"
    # The text of the stop token up to the stop string belongs to the response.
    assert decoded([3, 7], ("\n",)) == "ab"
    assert decoded([4, 9], ("\n", ".")) == " aa"
    # Two tokens spell the stop string, and sampling went on.
    assert decoded([3, 5, 5, 4], ("\n\n",)) == "a"
    assert decoded([5, 3, 5, 4], ("\n\n",)) == "\na\n a"
    assert decoded([3, 8, 5], ("\n", ".")) == decoded([3, 5, 8], ("\n", ".")) == "a"
    # EOS and the end of a turn have no text, and a response without a stop string is whole.
    assert decoded([3, 4, 1], ("\n",)) == decoded([3, 4, 10], ("\n",)) == "a a"
    assert decoded([4, 4], ("\n",), "{prompt} {response}") == "a a"
    assert decoded([5], ("\n",)) == ""


@hypothesis.given(
    st.lists(st.sampled_from(range(3, 10)), max_size=8),
    st.sets(st.sampled_from(["\n", "\n\n", ".", "a\n", "b"]), min_size=1),
)
def test_cutting_against_brute_force(ids, stop):
    """Extends the text by characters for as long as no stop string starts there."""
    tokenizer = prompts.PromptTokenizer(Words(), Prompt(stop=tuple(stop - {"a\n"})))
    tokenizer._stop = tuple(stop)
    text, kept = Words().decode(ids), ""
    while len(kept) < len(text) and not text[len(kept) :].startswith(tuple(stop)):
        kept += text[len(kept)]
    assert tokenizer.decode(ids) == kept


class Sums(Task):
    """Problems with repeated prompts, whose demonstrations are wrong for odd ids."""

    wrong = staticmethod(lambda problem: problem["id"] % 2)

    def problems(self, split):
        count = 40 if split == "train" else 4
        return [
            {"id": i, "prompt": f"{i // 4}+1=", "answer": str(i // 4 + 1)} for i in range(count)
        ]

    def grade(self, problem, response):
        return float(response == problem["answer"])

    def demonstration(self, problem, rng):
        return "wrong" if self.wrong(problem) else problem["answer"]


def chosen(task=None, **options):
    task = task or Sums()
    splits = task.problems("train"), task.problems("test")
    return prompts.worked_examples(task, *splits, Prompt(**options))


def test_worked_examples_are_right_distinct_and_left_out_of_training():
    seen = collections.Counter()
    for seed in range(20):
        examples, rest = chosen(shots=3, seed=seed)
        assert examples == chosen(shots=3, seed=seed)[0]
        asked = [example.prompt for example in examples]
        assert len(set(asked)) == 3 and all(eval(p[:-1]) == int(r) for p, r in examples)
        # The prompt 0+1= is held out, and stays in the training split as it was.
        assert "0+1=" not in asked
        assert [p for p in Sums().problems("train") if p["prompt"] not in asked] == rest
        seen.update(asked)
    assert len(seen) == 9
    assert chosen()[0] == [] and chosen()[1] == Sums().problems("train")
    examples, rest = chosen(shots=9)
    assert {p["prompt"] for p in rest} == {"0+1="}


def test_worked_examples_contain_no_stop_string():
    examples, _ = chosen(shots=8, stop=("10",))
    assert "10" not in {example.response for example in examples}


def test_too_few_worked_examples_are_said():
    with pytest.raises(ConfigError, match="shots=10, but 9 of the 40 training problems serve as"):
        chosen(shots=10)
    with pytest.raises(ConfigError, match="shots=9, but 8 of the 40"):
        chosen(shots=9, stop=("10",))
    always_wrong = Sums()
    always_wrong.wrong = lambda problem: True
    with pytest.raises(ConfigError, match=r"shots=1, but 0 of the 40 .* a right demonstration"):
        chosen(always_wrong, shots=1)
    ungraded = Sums()
    ungraded.grade = lambda problem, response: math.nan
    with pytest.raises(ConfigError, match=r"the demonstration of .* could not be graded"):
        chosen(ungraded, shots=1)
    nothing_left = Sums()
    nothing_left.problems = lambda split: [{"id": 0, "prompt": split, "answer": "1"}]
    with pytest.raises(ConfigError, match="others have to be left to train on"):
        chosen(nothing_left, shots=1)


@dataclasses.dataclass(frozen=True)
class Silent(Task):
    """A task without answers or demonstrations."""

    def problems(self, split):
        return [{"id": i, "prompt": f"{split}{i}"} for i in range(64)]

    def grade(self, problem, response):
        return float(bool(response))


def test_a_task_without_demonstrations_has_no_shots():
    config = config_lib.default("tests.training.test_prompts:Silent")
    config.rollout.max_prompt = 21
    assert Trainer(config).tokenizer.text("x") == "x"
    config.prompt.shots = 1
    with pytest.raises(ConfigError, match=r"no demonstrations.* set .*prompt\.shots=0") as e:
        Trainer(config)
    assert "\n" not in str(e.value)


def test_the_alphabet_grows_by_what_the_options_add_alone():
    maze = tasks.make({"name": "maze"})
    for name in ("maze", "arithmetic", "puzzles"):
        task = tasks.make({"name": name})
        # Saved policies depend on the order of the alphabet.
        assert prompts.alphabet(task, Prompt()) == task.alphabet
    backwards = Silent()
    object.__setattr__(backwards, "alphabet", "ab>")
    assert prompts.alphabet(backwards, Prompt(shots=1)) == "ab>\n"
    assert prompts.alphabet(backwards, Prompt(template=LINES)) == "ab>Q: \nA"
    assert prompts.alphabet(backwards, Prompt(stop=("b\t",))) == "ab>\t"
    assert prompts.alphabet(maze, Prompt(stop=("S",))) == maze.alphabet


def small_config():
    config = config_lib.default("arithmetic")
    config.task.digits, config.task.terms, config.task.train_problems = 1, 3, 100
    config.prompt.shots, config.prompt.template = 2, "{prompt} {response}\n"
    config.prompt.stop = ("\n", "7", "8", "9")
    config.rollout.max_prompt, config.rollout.max_response, config.rollout.n = 30, 6, 8
    config.k = 2
    config.warm_start.steps, config.warm_start.batch = 1, 8
    config.train.steps, config.train.prompts = 2, 4
    config.eval.problems = config.eval.prompts = 4
    config.eval.n, config.log.report = 8, False
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns the directory of a run, the batches of its updates, and all that it graded."""
    batches, graded = [], []
    grade, reward = tasks.Arithmetic.grade, Trainer._reward

    def recording_reward(self, batch, grades):
        batches.append(jax.device_get((batch.prompts, batch.lengths, batch.rollout)))
        return reward(self, batch, grades)

    def recording_grade(self, problem, response):
        graded.append((problem["prompt"], response))
        return grade(self, problem, response)

    workdir = tmp_path_factory.mktemp("runs") / "arithmetic"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_reward", recording_reward)
        patch.setattr(tasks.Arithmetic, "grade", recording_grade)
        loop.train(small_config(), workdir)
    return workdir, batches, collections.Counter(graded)


def test_the_prompts_and_the_graded_texts_of_a_run(finished):
    """Reads the tokens of the updates, without the tokenizer."""
    _, batches, graded = finished
    characters = ["", "<eos>", "\N{REPLACEMENT CHARACTER}", *tasks.Arithmetic.alphabet]
    ends = collections.Counter()
    assert len(batches) == 2
    for rows, lengths, rollout in batches:
        questions = []
        for ids, length in zip(rows, lengths, strict=True):
            *shots, question = "".join(characters[i] for i in ids[1:length]).split("\n")
            questions.append(question)
            assert len(shots) == 2
            for shown, answer in (shot.split("= ") for shot in shots):
                assert eval(shown) == int(answer)
        groups = (questions, rollout.tokens, rollout.lengths, rollout.finished)
        for question, *group in zip(*groups, strict=True):
            for ids, length, stopped in zip(*group, strict=True):
                *body, last = (characters[i] for i in ids[:length])
                assert not {*"\n789", "<eos>"} & set(body)
                assert stopped == (last in {*"\n789", "<eos>"})
                ends[last if stopped else "cut"] += 1
                text = "".join(body if stopped else [*body, last])
                assert graded[question, text.removeprefix(" ")] > 0
    assert ends["cut"] and sum(ends[c] for c in "\n789") > 3


def test_samples_show_the_whole_prompts(finished, capsys):
    workdir, *_ = finished
    *shots, asked = (workdir / "samples" / "000001.txt").read_text().splitlines()[3:6]
    assert asked.endswith("=") and not any(shot.endswith("=") for shot in shots)
    request = inspection.Request(config_lib.default(), {}, "newest", "test")
    inspection.sample(workdir, request, count=1)
    shown = capsys.readouterr().out
    assert all(f"│ {shot} " in shown for shot in shots)
    assert asked not in shown


def test_a_run_from_before_there_were_these_keys(tmp_path):
    config = config_lib.default("arithmetic")
    run_directory.claim(tmp_path / "run", config)
    path = tmp_path / "run" / "config.json"
    saved = json.loads(path.read_text())
    del saved["prompt"]
    path.write_text(json.dumps(saved))
    run_directory.claim(tmp_path / "run", config)
    assert json.loads(path.read_text())["prompt"]["stop"] == []
    path.write_text(json.dumps(saved))
    config.prompt.stop = ("\n",)
    with pytest.raises(ConfigError, match=r"prompt\.stop is \[\] there and \['\\n'\] here"):
        run_directory.claim(tmp_path / "run", config)
