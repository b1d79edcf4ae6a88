"""Tests against the `gemma` package, if installed: sizes, logits, decoding, files and tokens."""

import jax
import numpy as np
import pytest

from pkpo_jax.policy import checkpoints, gemma, official, tokenizers
from tests.policy import gemma_golden, parity
from tests.policy.test_checkpoints import assert_equal, like, read, saved
from tests.policy.test_tokenizers import TEXTS
from tests.policy.test_tokenizers import vocabulary as vocabulary

pytest.importorskip("kauldron")


@pytest.fixture(scope="module")
def gm():
    return official.gemma()


@pytest.mark.parametrize("size", parity.OFFICIAL)
def test_sizes_are_the_official_ones(size):
    found, expected = parity.sizes(size)
    assert found == expected


@pytest.mark.parametrize("name", gemma_golden.CONFIGS)
def test_logits(name):
    ours, theirs = parity.logits(name)
    # The order of sums in a product depends on the machine and on how it is shared.
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)
    # The logits in the repository are still those of the package.
    np.testing.assert_allclose(theirs, np.load(gemma_golden.PATH)[name][..., 1:], atol=1e-5)


@pytest.mark.parametrize("name", gemma_golden.CONFIGS)
def test_decoding_token_by_token(name):
    ours, theirs = parity.decoding(name)
    assert len(theirs) == len(ours) == 9
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


# -- files -----------------------------------------------------------------------------------------


@pytest.fixture
def params():
    return gemma_golden.params("2b")


CONFIG = gemma_golden.CONFIGS["2b"]


def test_their_files_are_read_here(gm, params, tmp_path):
    gm.ckpts.save_params(params, tmp_path / "params", wait_until_finished=True)
    assert_equal(read(tmp_path / "params", CONFIG), gemma.stack(params))


def test_our_files_are_read_there(gm, params, tmp_path):
    placed = jax.device_put(gemma.stack(params), jax.tree.map(lambda x: x.sharding, like(CONFIG)))
    checkpoints.write(str(tmp_path / "params"), placed)
    assert_equal(gm.ckpts.load_params(tmp_path / "params"), params)


def test_their_older_layouts_are_read_here(gm, params, tmp_path):
    """Reads the layouts FLAT and STACKED, which the package's own functions write."""
    from gemma.gm.ckpts import _checkpoint

    flat = _checkpoint._nested_to_flat(params)
    assert "transformer/layer_0/attn/q_einsum" in flat
    assert_equal(read(saved(tmp_path / "flat", flat), CONFIG), gemma.stack(params))
    stacked = _checkpoint._nested_to_stacked(params, 2)
    assert "transformer/stacked_layers/attention_type_0/attn/q_einsum" in stacked
    assert_equal(read(saved(tmp_path / "stacked", stacked), CONFIG), gemma.stack(params))


@pytest.mark.parametrize("text", TEXTS)
def test_tokens(gm, vocabulary, text):
    theirs = gm.text.Gemma2Tokenizer(path=vocabulary)
    ours = tokenizers.Gemma2Tokenizer(vocabulary)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    special = theirs.special_tokens
    assert (ours.bos_id, *ours.stop_tokens) == (special.BOS, special.EOS, special.END_OF_TURN)
