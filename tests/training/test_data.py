import math

import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax.policy.tokenizers import CharacterTokenizer
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
