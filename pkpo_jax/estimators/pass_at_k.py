"""Unbiased estimates of pass@k and pass^k from n >= k samples of a prompt.

pass@k is the chance that at least one of k samples is right, and pass^k that all k are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pkpo_jax.estimators import _groups


def pass_at_k(
    correct: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes the unbiased estimate of pass@k, the chance that one of k samples is right.

    rho(n, c, k) = 1 - C(n-c, k) / C(n, k) for c right answers of n (arXiv 2107.03374; equation 3 of
    "Pass@K Policy Optimization", arXiv 2505.15201). It is computed as a product of ratios, so that
    k may be traced.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension. From
        rewards, compute `rewards >= 1`. Where `where` is False it may hold anything.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not. An int or NumPy value outside 1..n raises. A JAX array is clipped to 1..n; so
        is every k in a group of which `where` keeps fewer than k.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [...] float32. A group without a valid sample gives 0.

    Raises:
      ValueError: static k outside 1..n, shapes that do not fit, or a valid sample that is neither 0
        nor 1. Under jit, vmap and grad the values are unknown, and anything but 0 counts as right.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> pkpo.pass_at_k([1, 0, 0, 0], k=2).item()
    0.5
    """
    misses = _groups.miss_ratios(*_groups.as_correct(correct, where))
    n, batch = misses.shape[-1], misses.shape[:-1]
    k = _groups.check_k(k, batch, n, largest=n)[..., None]
    return 1.0 - jnp.where(jnp.arange(n) < jnp.maximum(k, 1), misses, 1.0).prod(-1)


def pass_at_k_curve(
    correct: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Computes the unbiased estimates of pass@1, pass@2, ..., pass@n in one pass.

    Each of them is that of `pass_at_k`.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, pass@k at index k - 1; constant past the number of valid samples.

    Raises:
      ValueError: shapes that do not fit, or values other than 0 and 1, as in `pass_at_k`.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.pass_at_k_curve([1, 0, 0, 0]))
    [0.25 0.5  0.75 1.  ]
    """
    return 1.0 - jnp.cumprod(_groups.miss_ratios(*_groups.as_correct(correct, where)), -1)


def pass_hat_k(
    correct: jax.typing.ArrayLike,
    k: jax.typing.ArrayLike,
    where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
    """Computes the unbiased estimate of pass^k, the chance that all of k samples are right.

    It is C(c, k) / C(n, k) for c right answers of n (tau-bench, arXiv 2406.12045, section 3).
    While pass@k measures what k attempts can reach, pass^k measures how far a single answer can be
    relied on. It falls with k, and at k = 1 both are the pass rate.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension. From
        rewards, compute `rewards >= 1`. Where `where` is False it may hold anything.
      k: int or integer array that broadcasts against the leading dimensions (one k a prompt),
        traced or not. An int or NumPy value outside 1..n raises. A JAX array is clipped to 1..n; so
        is every k in a group of which `where` keeps fewer than k.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [...] float32. A group without a valid sample gives 0.

    Raises:
      ValueError: static k outside 1..n, shapes that do not fit, or a valid sample that is neither 0
        nor 1. Under jit, vmap and grad the values are unknown, and anything but 0 counts as right.
      TypeError: k is not an integer.

    >>> import pkpo_jax as pkpo
    >>> pkpo.pass_hat_k([1, 1, 1, 0], k=2).item()
    0.5
    """
    hits, valid = _hit_ratios(correct, where)
    n, batch = hits.shape[-1], hits.shape[:-1]
    k = jnp.maximum(_groups.check_k(k, batch, n, largest=n), 1)[..., None]
    return jnp.where(valid, jnp.where(jnp.arange(n) < k, hits, 1.0).prod(-1), 0.0)


def pass_hat_k_curve(
    correct: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None = None
) -> jax.Array:
    """Computes the unbiased estimates of pass^1, pass^2, ..., pass^n in one pass.

    Each of them is that of `pass_hat_k`.

    Args:
      correct: [..., n] 0 or 1 (or bool), n samples of one prompt in the last dimension.
      where: optional [..., n] bool, False for samples to leave out.

    Returns:
      [..., n] float32, pass^k at index k - 1; constant past the number of valid samples.

    Raises:
      ValueError: shapes that do not fit, or values other than 0 and 1, as in `pass_at_k`.

    >>> import pkpo_jax as pkpo
    >>> print(pkpo.pass_hat_k_curve([1, 1, 1, 0]))
    [0.75 0.5  0.25 0.  ]
    """
    hits, valid = _hit_ratios(correct, where)
    return jnp.where(valid[..., None], jnp.cumprod(hits, -1), 0.0)


def _hit_ratios(
    correct: jax.typing.ArrayLike, where: jax.typing.ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    """Returns [..., n] chances that sample i+1 is right if the i before it were, and a group mask.

    The mask [...] is False for groups without a valid sample.
    """
    correct, valid = _groups.as_correct(correct, where)
    # All k samples are right if none of them is wrong, so right and wrong change places here.
    return _groups.miss_ratios(valid & ~correct, valid), valid.any(-1)
