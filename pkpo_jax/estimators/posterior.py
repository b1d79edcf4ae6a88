"""Pass@k for k beyond n, with the pass rate of a prompt from this visit and from earlier ones.

The gradient of pass@k is k (1-p)^(k-1) times that of pass@1, where p is the pass rate of the
prompt. For k > n no function of n samples estimates this factor without bias. A run meets a prompt
many times, though, and what it counted then tells p ever better.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax import options
from pkpo_jax.estimators import _groups
from pkpo_jax.estimators.baselines import rloo_advantages


def posterior_advantages(
    correct: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    right: jax.typing.ArrayLike = 0.0,
    wrong: jax.typing.ArrayLike = 0.0,
    where: jax.typing.ArrayLike | None = None,
    *,
    prior: tuple[float, float] = (1.0, 1.0),
) -> jax.Array:
    """Computes advantages of pass@1, scaled for pass@k by what all other samples say of p.

    A_i = u_i (r_i - mean of the other samples),
    u_i = E[k (1-p)^(k-1)] = k prod_{j=0}^{k-2} (b_i+j) / (a_i+b_i+j),

    where p has the posterior Beta(a_i, b_i): a_i is prior[0] plus the right answers at earlier
    visits and those of the other samples of the group, and b_i is the same of wrong answers
    (derived here, from BBG's scale, arXiv 2606.15455).

    Neither u_i nor the baseline depends on sample i. Given the counts, the mean of the estimate is
    therefore E[u_i] times the gradient of pass@1, exactly, and its only bias is that of E[u_i],
    which vanishes as the counts grow while p stays. `bbg_advantages` counts sample i in its factor,
    which makes the factor smallest where i is right. With n = 16, k = 64 and p = 0.01 the factor
    is 33.98; its mean is 11.48 at the first visit, where that of BBG is 2.46, and 25.18 and 31.10
    after 4 and 16 visits of 16 samples (with a prior of 0.5: 25.00, 33.56 and 34.48). Where p has
    risen, old counts make the factor too large, so that a run discounts them.

    From k-1 other samples on, k C(wrong, k-1) / C(right + wrong, k-1) would have no bias for a p
    that stays, but has more noise, and whole counts cannot be discounted.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      k: int >= 1 or integer array that broadcasts against the leading dimensions, traced or not;
        it may exceed n. A JAX array is clipped to 1 from below.
      right, wrong: numbers >= 0 or arrays that broadcast against the leading dimensions, how many
        samples were right and wrong at earlier visits of each prompt. Discounted counts need not be
        whole. They must not hold the samples of `correct`.
      where: optional [..., n] bool, False for samples to leave out.
      prior: two numbers above 0, those of Beta(a, b) before the first visit.

    Returns:
      [..., n] float32 in the MEAN convention, 0 where `where` is False and in groups whose answers
      are all right or all wrong.

    Raises:
      ValueError: static k below 1, shapes that do not fit, values other than 0 and 1, as in
        `pass_at_k`, a prior that is not positive, or negative counts.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.posterior_advantages([1, 0], k=2).round(4))  # u = 2 * 2/3 and 2 * 1/3
    [ 1.3333 -0.6667]
    """
    options.check_prior(prior)
    options.check("right", right, at_least=0)
    options.check("wrong", wrong, at_least=0)
    correct, valid = _groups.as_correct(correct, where)
    batch = correct.shape[:-1]
    k = jnp.maximum(_groups.check_k(k, batch, correct.shape[-1], largest=None), 1)
    # The others of a sample are the same for all right samples, and for all wrong ones.
    own_right, own_wrong = jnp.eye(2, dtype=jnp.float32)
    a = prior[0] + _of_earlier(right, batch, "right") + _without(own_right, correct)
    b = prior[1] + _of_earlier(wrong, batch, "wrong") + _without(own_wrong, valid & ~correct)
    u = mean_factor(a, b, k[..., None])
    return jnp.where(correct, u[..., :1], u[..., 1:]) * rloo_advantages(correct, where)


def mean_factor(a: jax.Array, b: jax.Array, k: jax.Array) -> jax.Array:
    """Returns the mean of k (1-p)^(k-1) for p ~ Beta(a, b).

    It is k prod_{j=0}^{k-2} (b+j) / (a+b+j), which float32 holds for any k, unlike the gamma
    functions of which it is a ratio.

    Args:
      a, b: [...] float32 of one shape, above 0.
      k: integers >= 1 that broadcast against them.
    """

    def multiply(j: int, product: jax.Array) -> jax.Array:
        return jnp.where(j < k - 1, product * (b + j) / (a + b + j), product)

    return k * jax.lax.fori_loop(0, jnp.max(k) - 1, multiply, jnp.ones_like(b))


def _of_earlier(counts: jax.typing.ArrayLike, batch: tuple[int, ...], name: str) -> jax.Array:
    """Returns counts [...] of earlier visits as [..., 1] float32, or raises ValueError."""
    counts = jnp.asarray(counts, jnp.float32)
    try:
        return jnp.broadcast_to(counts, batch)[..., None]
    except ValueError:
        raise ValueError(
            f"{name} has shape {counts.shape}; expected one that broadcasts against {batch}, the "
            "leading dimensions of the samples (one count a prompt)."
        ) from None


def _without(own: jax.Array, counted: jax.Array) -> jax.Array:
    """Returns [..., 2], the number of samples of [..., n] that are counted, less `own` [2]."""
    return jnp.maximum(counted.sum(-1, keepdims=True, dtype=jnp.float32) - own, 0.0)
