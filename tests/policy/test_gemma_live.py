"""Tests against the `gemma` package, if installed: sizes, logits, decoding, files and tokens."""

import jax
import numpy as np
import pytest

from pkpo_jax.policy import checkpoints, gemma2, official, tokenizers
from tests.policy import gemma_golden, parity
from tests.policy.test_checkpoints import assert_equal, like, read, saved

pytest.importorskip("kauldron")


@pytest.fixture(scope="module")
def gm():
    return official.gemma()


@pytest.mark.parametrize("size", ["2b", "9b", "27b"])
def test_sizes_are_the_official_ones(size):
    found, expected = parity.sizes(size)
    assert found == expected


@pytest.mark.parametrize("name", gemma_golden.CONFIGS)
def test_logits(name):
    ours, theirs = parity.logits(name)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    # The logits in the repository are still those of the package.
    np.testing.assert_allclose(theirs, np.load(gemma_golden.PATH)[name][..., 1:], atol=1e-5)


@pytest.mark.parametrize("name", gemma_golden.CONFIGS)
def test_decoding_token_by_token(name):
    ours, theirs = parity.decoding(name)
    assert len(theirs) == len(ours) == 9
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def params():
    return gemma_golden.params("2b")


CONFIG = gemma_golden.CONFIGS["2b"]


def test_their_files_are_read_here(gm, params, tmp_path):
    gm.ckpts.save_params(params, tmp_path / "params", wait_until_finished=True)
    assert_equal(read(tmp_path / "params", CONFIG), gemma2.stack(params))


def test_our_files_are_read_there(gm, params, tmp_path):
    placed = jax.device_put(gemma2.stack(params), jax.tree.map(lambda x: x.sharding, like(CONFIG)))
    checkpoints.write(str(tmp_path / "params"), placed)
    assert_equal(gm.ckpts.load_params(tmp_path / "params"), params)


def test_their_older_layouts_are_read_here(gm, params, tmp_path):
    """Reads the layouts FLAT and STACKED, which the package's own functions write."""
    from gemma.gm.ckpts import _checkpoint

    flat = _checkpoint._nested_to_flat(params)
    assert "transformer/layer_0/attn/q_einsum" in flat
    assert_equal(read(saved(tmp_path / "flat", flat), CONFIG), gemma2.stack(params))
    stacked = _checkpoint._nested_to_stacked(params, 2)
    assert "transformer/stacked_layers/attention_type_0/attn/q_einsum" in stacked
    assert_equal(read(saved(tmp_path / "stacked", stacked), CONFIG), gemma2.stack(params))


# -- tokens ----------------------------------------------------------------------------------------

TEXTS = ("What is 12 + 30?", "It is 42.\n\nThe answer is $\\boxed{42}$.", "x² ≤ 9, also  spaces")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """Trains a tokenizer.model that has the official special tokens at their ids."""
    import sentencepiece

    directory = tmp_path_factory.mktemp("tokenizer")
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join((*TEXTS, "user", "model", "the quick brown fox")))
    symbols = ["<mask>", "<2mass>", "[@BOS@]", *(f"<unused{i}>" for i in range(99))]
    symbols += ["<start_of_turn>", "<end_of_turn>", "\n", "\n\n"]
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(directory / "tokenizer"),
        model_type="bpe",
        vocab_size=500,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=symbols,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return str(directory / "tokenizer.model")


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back(gm, vocabulary, text):
    tokenizer = tokenizers.Gemma2Tokenizer(vocabulary)
    ids = tokenizer.encode(text)
    assert min(ids) > 3  # No PAD, EOS, BOS or UNK.
    assert tokenizer.decode(ids) == tokenizer.decode(np.array(ids)) == text
    assert tokenizer.encode_prompt(text) == [2, *ids]


def test_prompts_as_turns(gm, vocabulary):
    tokenizer = tokenizers.Gemma2Tokenizer(vocabulary, chat=True)
    special = gm.text.Gemma2Tokenizer.special_tokens
    bos, start, end = special.BOS, special.START_OF_TURN, special.END_OF_TURN
    assert (bos, start, end) == (2, 106, 107)
    assert tokenizer.stop_tokens == (special.EOS, end)

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
