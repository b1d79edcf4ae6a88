"""Reward weights of tokens, for losses that do not treat all tokens of a response alike.

A function of this module maps the reward weights [P, n] of an estimator and what is known of the
tokens to weights [P, n, T]. It runs inside the update, for the policy before each of its steps, and
its result is a constant of the loss. Groups are whole, whatever the micro-batches and the mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pkpo_jax.training import weights as weights_lib

# ResRL takes this many directions from at most this many tokens of the right responses to a prompt,
# and needs at least this many.
DIRECTIONS = 64
MOST_TOKENS = 4096
FEWEST_TOKENS = 4
# ResRL multiplies the weights of right responses by this, and those of wrong tokens by at least
# this.
SMALLEST = 0.1
# The distances of wrong tokens are scaled between these quantiles.
QUANTILES = (0.2, 0.8)
# Relative to the largest variance, smaller variances and distances are rounding errors.
ROUNDING = 1e-6


class Responses(NamedTuple):
    """The responses to P prompts as a function of this module sees them, without gradients.

    Attributes:
      weights: [P, n] float32 reward weights of the estimator, in the SUM convention.
      rewards: [P, n] float32, as they were graded; valid: [P, n] bool, those that could be graded.
      mask: [P, n, T] bool, the tokens that count in the loss.
      log_probs, entropy: [P, n, T] float32 under the policy that is updated, in nats.
      hidden: [P, n, T, D] normalised hidden states, of which the head predicts each token.
    """

    weights: jax.Array
    rewards: jax.Array
    valid: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    entropy: jax.Array
    hidden: jax.Array


def resrl(responses: Responses) -> jax.Array:
    """Computes ResRL's weights of tokens (arXiv 2605.00380) from distances of hidden states.

    Each hidden state h is normalised to mean 0 and variance 1 over its D entries. Of the tokens of
    a prompt's right responses (reward of at least 1), mu is the mean of h, and the columns of V are
    the 64 directions in which h varies most. The distance of a token of a wrong response is
    d = ||(I - V V^T)(h - mu)||^2 / D: it is small where the response is still like the right ones.
    Let lo and hi be the quantiles .2 and .8 of these distances in a group. The weight of a wrong
    response is then multiplied at each token by

        .1 + .9 clip((d - lo) / (hi - lo), 0, 1)          (.55 if lo = hi),

    or by 1 in groups with fewer than 4 tokens of right responses, and that of a right response by
    .1. Where D is 64 or less, V may span everything, and then lo = hi = 0.

    The formula is that of the authors' code, github.com/1229095296/ResRL, with two differences. It
    takes hidden states from before the last layer, and ours are those that the head reads. Of more
    than 4096 tokens of right responses it samples that many, and we use the first ones.

    Returns:
      [P, n, T] float32, the weights times these factors.
    """
    right = (responses.valid & (responses.rewards >= 1.0))[..., None] & responses.mask
    wrong = responses.mask & ~right
    factors = jax.vmap(_resrl_factors)(responses.hidden, right, wrong)
    return responses.weights[..., None] * factors


def _resrl_factors(hidden: jax.Array, right: jax.Array, wrong: jax.Array) -> jax.Array:
    """Returns the factors [n, T] of a group with hidden states [n, T, D]."""
    shape, width = right.shape, hidden.shape[-1]
    hidden = jax.nn.standardize(hidden.reshape(-1, width).astype(jnp.float32))
    right, wrong = right.reshape(-1), wrong.reshape(-1)
    used = right & (jnp.cumsum(right) <= MOST_TOKENS)
    count = jnp.maximum(used.sum(), 1)
    mean = jnp.where(used[:, None], hidden, 0.0).sum(0) / count
    offsets = hidden - mean
    spread = jnp.where(used[:, None], offsets, 0.0)
    with jax.default_matmul_precision("highest"):
        variances, directions = jnp.linalg.eigh(spread.T @ spread / count)
        varied = variances > ROUNDING * variances[-1]
        directions = jnp.where(varied, directions, 0.0)[:, -DIRECTIONS:]
        rest = offsets - (offsets @ directions) @ directions.T
    distances = (rest**2).mean(-1)
    low, high = jnp.nanquantile(jnp.where(wrong, distances, jnp.nan), jnp.array(QUANTILES))
    size = jnp.where(wrong, (offsets**2).mean(-1), 0.0).max()
    far = high - low > ROUNDING * size
    share = jnp.clip((distances - low) / jnp.where(far, high - low, 1.0), 0.0, 1.0)
    share = jnp.where(far, share, 0.5)
    factors = SMALLEST + (1.0 - SMALLEST) * share
    factors = jnp.where(used.sum() >= FEWEST_TOKENS, factors, 1.0)
    return jnp.where(wrong, factors, SMALLEST).reshape(shape)


_FUNCTIONS: dict[str, Callable[[Responses], jax.Array]] = {"resrl": resrl}
NAMES = tuple(_FUNCTIONS)


def make(name: str) -> Callable[[Responses], jax.Array] | None:
    """Returns the function of the key `loss.token_weights`, or None if it is empty.

    Args:
      name: "", one of NAMES, or "module:function" for a user's function, which maps `Responses` to
        weights [P, n, T]. It has to treat groups separately, as micro-batches split a batch.

    Raises:
      ValueError: there is no such function.
    """
    if not name:
        return None
    return _FUNCTIONS.get(name) or weights_lib.import_function(name, NAMES)


def apply(name: str, responses: Responses) -> jax.Array:
    """Returns the weights that the loss uses: [P, n], or [P, n, T] if those of tokens differ.

    Args:
      name: the key `loss.token_weights`.
      responses: those of a batch or of a part of it, with gradients or without.

    Raises:
      ValueError: the user's function returns another shape.
    """
    function = make(name)
    if function is None:
        return responses.weights
    responses = Responses(*map(jax.lax.stop_gradient, responses))
    weights = jnp.asarray(function(responses), jnp.float32)
    if weights.shape != responses.mask.shape:
        raise ValueError(f"it gives {weights.shape}; expected {responses.mask.shape}.")
    return jnp.where(responses.mask, weights, 0.0)


def check(name: str, n: int) -> None:
    """Raises a ValueError if there is no such function, or if it fails, before anything compiles.

    Args:
      name: the key `loss.token_weights`.
      n: the number of responses of a group.
    """
    make(name)
    group, tokens, real = (2, n), (2, n, 3), jnp.float32
    like: Any = jax.ShapeDtypeStruct
    responses = Responses(
        weights=like(group, real),
        rewards=like(group, real),
        valid=like(group, bool),
        mask=like(tokens, bool),
        log_probs=like(tokens, real),
        entropy=like(tokens, real),
        hidden=like((*tokens, 4), real),
    )
    try:
        jax.eval_shape(lambda r: apply(name, r), responses)
    except Exception as e:  # The user's function may raise any error.
        raise ValueError(f"it fails on [2, {n}, 3] tokens: {type(e).__name__}: {e}") from None
