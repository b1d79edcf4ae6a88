"""The reward weights of a config's estimator: one function of a graded batch, in one convention.

Some estimators give reward weights, whose SUM over the group estimates a gradient; others give
advantages, whose mean over the group does. Here all of them become reward weights: an advantage is
divided by the size of its group, so that changing the estimator or k does not change the scale of
a step by n.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax import estimators
from pkpo_jax.estimators import Mixture, passk_training, pkpo
from pkpo_jax.training.config import Estimator

# This is the type of the function that `make` returns.
Weigh = Callable[..., jax.Array]

_WITHOUT_K = {
    "grpo": estimators.grpo_advantages,
    "dr_grpo": estimators.dr_grpo_advantages,
    "rloo": estimators.rloo_advantages,
    "maxrl": estimators.maxrl_advantages,
}
NAMES = ("pkpo", "passk_training", *_WITHOUT_K, "mahdavi", "tang", "off_policy")
# These take a mixture of several k; the others need one k at a time.
MIXED = ("pkpo", "off_policy")
# These read a reward as right (at least 1) or wrong.
BINARY = ("passk_training", "maxrl", "mahdavi")


def make(estimator: Estimator) -> Weigh:
    """Returns the function (rewards, k, valid, *, rows, key, entropy, ratios) -> weights [P, n].

    The arguments of that function are:
      rewards: [P, n] float32.
      k: an int, or [P] integers; for the estimators in MIXED, also a `Mixture` of them.
      valid: [P, n] bool, True for responses that could be graded.
      rows: [P], the numbers of the prompts in the batch, which are folded into `key` if the
        estimator samples groups.
      key: the random key of the step.
      entropy: [P], the mean policy entropy of each prompt's tokens.
      ratios: [P, n], the probabilities of the responses under the policy that is updated, divided
        by those under the policy that sampled them, or None if the two policies are the same. Only
        "off_policy" uses them.

    Args:
      estimator: the section of a config. Its `name` is one of NAMES, with `baseline` for "pkpo" and
        `method` for "passk_training". Or it is "module:function", which names a user's function
        (rewards [P, n], k, where [P, n] bool) -> [P, n]. Its result is what `returns` says:
        "weights" in the SUM convention, or "advantages", which are then divided by the size of
        their group.

    Raises:
      ValueError: there is no such estimator, or the function cannot be imported.
    """
    name = estimator.name
    custom = None if name in NAMES else _import_function(name)

    def weigh(
        rewards: jax.Array,
        k: jax.typing.ArrayLike | Mixture,
        valid: jax.Array,
        *,
        rows: jax.Array,
        key: jax.Array,
        entropy: jax.Array,
        ratios: jax.Array | None = None,
    ) -> jax.Array:
        if custom:
            weights = jnp.asarray(custom(rewards, k, valid), jnp.float32)
            if weights.shape != rewards.shape:
                raise ValueError(f"it gives {weights.shape}; expected {rewards.shape}.")
            if estimator.returns == "advantages":
                weights = _to_weights(weights, valid)
            return jnp.where(valid, weights, 0.0)
        if name == "pkpo":
            return pkpo.pkpo_weights(rewards, k, baseline=estimator.baseline, where=valid)
        if name == "tang":
            return estimators.tang_weights(rewards, valid)
        if name == "off_policy":
            ratios = jnp.ones_like(rewards) if ratios is None else ratios
            return estimators.off_policy_weights(rewards, k, ratios, where=valid)
        correct = rewards >= 1.0
        if name in _WITHOUT_K:
            given = correct if name in BINARY else rewards
            advantages = _WITHOUT_K[name](given, valid)
        elif name == "mahdavi":
            advantages = estimators.mahdavi_advantages(correct, k, valid)
        else:
            advantages = _passk_training(estimator.method, correct, k, valid, rows, key, entropy)
        return _to_weights(advantages, valid)

    return weigh


def _to_weights(advantages: jax.Array, valid: jax.Array) -> jax.Array:
    """Converts advantages into reward weights, whose sum replaces the mean over the group."""
    return advantages / jnp.maximum(valid.sum(-1, keepdims=True), 1)


def _passk_training(
    method: passk_training.Method,
    correct: jax.Array,
    k: jax.typing.ArrayLike,
    valid: jax.Array,
    rows: jax.Array,
    key: jax.Array,
    entropy: jax.Array,
) -> jax.Array:
    advantages = passk_training.passk_training_advantages
    if method != "bootstrap":
        return advantages(correct, k, method=method, entropy=entropy, where=valid)
    # Each prompt has its own key, so its random groups do not depend on how the batch is sharded.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    k = jnp.broadcast_to(k, rows.shape)
    one = lambda c, k, v, key: advantages(c, k, method=method, key=key, where=v)  # noqa: E731
    return jax.vmap(one)(correct, k, valid, keys)


def _import_function(name: str) -> Callable[..., jax.Array]:
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"expected one of {', '.join(NAMES)}, or your own as module:function.")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as e:
        raise ValueError(
            f"{e}; the module is imported as Python does, from the directory the run starts in."
        ) from None


def check(estimator: Estimator, n: int, ks: list[int | Mixture]) -> None:
    """Raises a ValueError if the estimator cannot serve n and these k, before anything compiles."""
    weigh, name = make(estimator), estimator.name
    for k in ks:
        if isinstance(k, Mixture) and name not in MIXED:
            raise ValueError(f"k={k}, but it takes one k; use {' or '.join(MIXED)}, or one k.")
        if name in _WITHOUT_K and k != 1:
            raise ValueError(f"k={k}, but it trains for pass@1 and takes no k; set k to 1.")
        if name == "tang" and k != n:
            raise ValueError(f"k={k}, but it trains for max@n; set k to rollout.n, {n}.")
    if name not in NAMES:
        shapes = [((2, n), jnp.float32), ((), jnp.int32), ((2, n), bool), ((2,), jnp.int32)]
        arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
        key = jax.eval_shape(lambda: jax.random.key(0))
        entropy = jax.ShapeDtypeStruct((2,), jnp.float32)
        try:
            jax.eval_shape(
                lambda r, k, v, rows, key, e: weigh(r, k, v, rows=rows, key=key, entropy=e),
                *arrays,
                key,
                entropy,
            )
        except Exception as e:  # The user's function may raise any error.
            raise ValueError(f"it fails on [2, {n}] rewards: {type(e).__name__}: {e}") from None


def largest_k(estimator: Estimator, n: int) -> float:
    """Returns the largest k that a group of n serves."""
    if estimator.name == "mahdavi" or estimator.name not in NAMES:
        return np.inf
    needs_rest = estimator.name == "pkpo" and estimator.baseline in ("loo", "centered")
    return n - 1 if needs_rest else n
