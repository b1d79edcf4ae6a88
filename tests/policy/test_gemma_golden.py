"""Tests of the network against logits that the `gemma` package computed (see gemma_golden.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax.policy import gemma, scoring
from tests.policy import gemma_golden

GOLDEN = np.load(gemma_golden.PATH)


@pytest.mark.parametrize("name", gemma_golden.CONFIGS)
def test_logits(name):
    model = gemma.Gemma(gemma_golden.CONFIGS[name])
    params = gemma.stack(gemma_golden.params(name))

    @jax.jit
    def logits(tokens):
        hidden = model.apply({"params": params}, tokens)
        return model.apply({"params": params}, hidden, method="logits")

    # PAD is never sampled. Our network masks it, and theirs does not.
    ours, theirs = logits(gemma_golden.tokens())[..., 1:], GOLDEN[name][..., 1:]
    assert theirs.std() > 0.5
    # The order of sums in a product depends on the machine and on how it is shared.
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", gemma_golden.CONFIGS)
def test_scores_after_a_shared_prompt(name):
    """Checks the scorer's log-probs of the second half of each sequence after the first half."""
    model = gemma.Gemma(gemma_golden.CONFIGS[name])
    params = gemma.stack(gemma_golden.params(name))
    tokens, prompt = gemma_golden.tokens(), 8
    lengths = jnp.full(len(tokens), prompt)
    log_probs, _ = jax.jit(lambda *a: scoring.score(model, params, *a))(
        tokens[:, :prompt], lengths, tokens[:, None, prompt:]
    )
    theirs = jax.nn.log_softmax(GOLDEN[name][:, prompt - 1 : -1, 1:])
    expected = np.take_along_axis(theirs, tokens[:, prompt:, None] - 1, -1)[..., 0]
    np.testing.assert_allclose(log_probs[:, 0], expected, atol=2e-5, rtol=0)
