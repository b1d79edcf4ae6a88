"""Gemma-2's tokenizer, read from a file, and the turns of its chat template."""

import sys
import types

import numpy as np
import pytest

from pkpo_jax.policy import tokenizers
from tests.policy import sentencepieces

TEXTS = ("What is 12 + 30?", "It is 42.\n\nThe answer is $\\boxed{42}$.", "x² ≤ 9, also  spaces")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Trains a tokenizer.model that has the official special tokens at their ids."""
    symbols = ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{i}>" for i in range(99))]
    symbols += ["<start_of_turn>", "<end_of_turn>", "\n", "\n\n"]
    texts = (*TEXTS, "user", "model", "the quick brown fox")
    directory = tmp_path_factory.mktemp("tokenizer")
    return sentencepieces.train(directory, texts, symbols, vocab_size=500)


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(vocabulary, text):
    tokenizer = tokenizers.Gemma2Tokenizer(vocabulary)
    ids = tokenizer.encode(text)
    assert min(ids) > 3  # No PAD, EOS, BOS or UNK.
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == text
    assert tokenizer.encode_prompt(text) == [2, *ids]


def test_prompts_as_turns(vocabulary):
    tokenizer = tokenizers.Gemma2Tokenizer(vocabulary, chat=True)
    bos, start, end = 2, 106, 107
    assert tokenizer.stop_tokens == (1, end)

    def ids(text):
        return tokenizer.encode(text)

    question = TEXTS[0]
    newline, model = ids("\n"), ids("model\n")
    expected = [bos, start, *ids("user\n"), *ids(question), end, *newline, start, *model]
    assert tokenizer.encode_prompt(question) == expected
    assert tokenizer.decode(expected[-len(model) :]) == "model\n"


def test_a_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(tokenizers.TokenizerError, match="Hugging Face and Kaggle") as error:
        tokenizers.Gemma2Tokenizer(str(tmp_path / "tokenizer.model"))
    assert str(tmp_path / "tokenizer.model") in str(error.value)


def test_what_is_missing_is_said(vocabulary, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(tokenizers.TokenizerError, match=r'pip install -e "\.\[tokenizer\]"'):
        tokenizers.Gemma2Tokenizer(vocabulary)


# The chat template of google/gemma-2-2b-it gives this for one message of a user; its BOS is an id.
TURN = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"


def test_a_turn_is_that_of_the_models_own_template(monkeypatch):
    """It strips the text: the prompts of math and code end on a newline."""

    class Words:
        def encode(self, text):
            self.texts = [*getattr(self, "texts", []), text]
            return [7]

    words = Words()
    package = types.SimpleNamespace(text=types.SimpleNamespace(Gemma2Tokenizer=lambda: words))
    monkeypatch.setattr(tokenizers.official, "gemma", lambda: package)
    assert tokenizers.Gemma2Tokenizer(chat=True).encode_prompt("\n What is 1+1?\n\n") == [2, 7]
    assert words.texts[-1] == TURN.format("What is 1+1?")
    # Without turns a prompt is what the task says, to the last character.
    assert tokenizers.Gemma2Tokenizer().encode_prompt(" 1+1=\n") == [2, 7]
    assert words.texts[-1] == " 1+1=\n"
