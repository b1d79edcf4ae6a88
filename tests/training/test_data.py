import math

import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax.policy.tokenizers import CharacterTokenizer
from pkpo_jax.tasks import Task
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import data, losses
from pkpo_jax.training.config import ConfigError

TOKENIZER = CharacterTokenizer("LRUD\n")


def test_prompts_are_right_padded_after_bos():
    tokens, lengths = data.encode_prompts(TOKENIZER, ["LR\n", ""], max_prompt=5)
    np.testing.assert_array_equal(tokens, [[2, 3, 4, 7, 0], [2, 0, 0, 0, 0]])
    np.testing.assert_array_equal(lengths, [4, 1])


def test_demonstrations_end_with_eos_and_the_mask_holds_it():
    tokens, mask = data.encode_responses(TOKENIZER, ["UD", ""], max_response=4)
    np.testing.assert_array_equal(tokens, [[[5, 6, 1, 0]], [[1, 0, 0, 0]]])
    np.testing.assert_array_equal(mask.sum(-1), [[3], [1]])


def test_decoding_shows_a_bos_and_leaves_out_the_end():
    tokens = np.array([[[3, 4, 1, 0], [2, 3, 2, 6]]])
    texts = data.decode_responses(TOKENIZER, tokens, np.array([[3, 4]]))
    assert texts == [["LR", "\N{REPLACEMENT CHARACTER}L\N{REPLACEMENT CHARACTER}D"]]


def test_too_long_and_unknown_characters_are_said():
    with pytest.raises(ConfigError, match=r"rollout\.max_prompt=2, but a prompt has 3 tokens"):
        data.encode_prompts(TOKENIZER, ["L", "LR"], max_prompt=2)
    with pytest.raises(ConfigError, match=r"rollout\.max_response=2, but a demonstration has 3"):
        data.encode_responses(TOKENIZER, ["LR"], max_response=2)
    with pytest.raises(ValueError, match="no token for the character 'x'"):
        TOKENIZER.encode("Lx")


def test_training_order_is_an_epoch_of_each_problem_then_another():
    order = data.in_training_order(list(range(20)), seed=0)
    first, second = [order[i] for i in range(20)], [order[i] for i in range(20, 40)]
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second and first != list(range(20))
    assert [data.in_training_order(list(range(20)), seed=1)[i] for i in range(20)] != first


def test_the_supervised_loss_by_hand():
    log_probs = jnp.array([[[-1.0, -2.0], [-3.0, -4.0]], [[-5.0, -6.0], [-7.0, -8.0]]])
    mask = jnp.array([[[True, True], [True, False]], [[True, False], [True, True]]])
    loss = losses.supervised(log_probs, mask, mask.sum())
    assert math.isclose(float(loss), 26 / 6, rel_tol=1e-6)


class Own(Task):
    """A user's task whose methods return given values."""

    def __init__(self, problems, answer=None, demonstration="L"):
        self.given, self.answered, self.shown = problems, answer, demonstration

    def problems(self, split):
        return self.given

    def answer(self, response):
        return self.answered

    def demonstration(self, problem, rng):
        return self.shown


GOOD = {"id": 0, "prompt": "L"}


@pytest.mark.parametrize(
    ("problems", "message"),
    [
        (None, r"problems\('train'\) gave NoneType; expected a sequence"),
        ((p for p in [GOOD]), "gave generator; expected a sequence"),
        ([], "the task own has no train problems"),
        ([GOOD, "LR"], 'train problem 1 is str; expected a dict with "id" and "prompt"'),
        ([{"id": 0}], 'problem 0: "prompt" is None; expected a string'),
        ([{"id": 0, "prompt": 3}], 'problem 0: "prompt" is 3; expected a string'),
        ([{"prompt": "L"}], 'problem 0: "id" is None; expected a whole number or a string'),
        ([{**GOOD, "id": 1.5}], '"id" is 1.5; expected a whole number or a string'),
        ([{**GOOD, "id": True}], '"id" is True; expected a whole number or a string'),
        (
            [GOOD, {**GOOD, "id": 1}, GOOD],
            'problem 2: "id" is 0, as that of problem 0; expected an',
        ),
    ],
)
def test_faults_of_ones_own_problems_are_said(problems, message):
    with pytest.raises(ValueError, match=message) as e:
        data.read_problems(Own(problems), "own", "train")
    assert "\n" not in str(e.value)


def test_ids_are_numbers_or_strings():
    problems = [{"id": key, "prompt": "L"} for key in ("a", "b", 7, np.int64(8))]
    assert data.read_problems(Own(problems), "own", "train") == problems


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answer": 7}, r"the task maze: answer\(''\) gave 7; expected a string, or None"),
        ({"demonstration": 7}, "the demonstration of the training problem 0 is 7; expected a str"),
    ],
)
def test_answers_and_demonstrations_are_strings(options, message):
    config = config_lib.default()
    config.warm_start.steps = 1
    with pytest.raises(ValueError, match=message):
        data.check_lengths(Own([GOOD], **options), TOKENIZER, [GOOD], [GOOD], config)
