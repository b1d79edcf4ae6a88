"""The reward weights of a config's estimator: one function of a graded batch, in one convention.

Estimators come as weights, whose SUM over the group estimates a gradient, and as advantages, whose
mean does. Here all of them are weights: an advantage is divided by its group's size, so that
another estimator, or another k, never changes the scale of a step by n.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax import estimators
from pkpo_jax.estimators import passk_training, pkpo
from pkpo_jax.training.config import Estimator

# What `make` returns.
Weigh = Callable[..., jax.Array]

_WITHOUT_K = {
    "grpo": estimators.grpo_advantages,
    "dr_grpo": estimators.dr_grpo_advantages,
    "rloo": estimators.rloo_advantages,
    "maxrl": estimators.maxrl_advantages,
}
NAMES = ("pkpo", "passk_training", *_WITHOUT_K, "mahdavi", "tang", "off_policy")
# These read a reward as right (at least 1) or wrong.
BINARY = ("passk_training", "maxrl", "mahdavi")


def make(estimator: Estimator) -> Weigh:
    """Returns the function (rewards, k, valid, *, rows, key, entropy, ratios) -> weights [P, n].

    Args:
      estimator: the section of a config. Its `name` is one of NAMES, with `baseline` for "pkpo" and
        `method` for "passk_training"; or "module:function", a function of one's own (rewards
        [P, n], k, where [P, n] bool) -> [P, n] of what `returns` says: "weights" in the SUM
        convention, or "advantages", which are divided by the size of their group here.

    Of its arguments, rewards are [P, n] float32, k is an int or [P] integers, valid is [P, n] bool;
    rows are the prompts' [P] numbers in the batch, folded into `key` where groups are drawn;
    entropy is the [P] mean policy entropy of each prompt. ratios are the [P, n] probabilities of
    the responses under the policy that is updated, divided by those under the one that sampled
    them, or None where they are the same policy; only "off_policy" reads them.

    Raises:
      ValueError: no such estimator, or a function that cannot be imported.
    """
    name = estimator.name
    own = None if name in NAMES else _own(name)

    def weigh(
        rewards: jax.Array,
        k: jax.typing.ArrayLike,
        valid: jax.Array,
        *,
        rows: jax.Array,
        key: jax.Array,
        entropy: jax.Array,
        ratios: jax.Array | None = None,
    ) -> jax.Array:
        if own:
            weights = jnp.asarray(own(rewards, k, valid), jnp.float32)
            if weights.shape != rewards.shape:
                raise ValueError(f"it gives {weights.shape}; expected {rewards.shape}.")
            if estimator.returns == "advantages":
                weights = _per_sample(weights, valid)
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
        return _per_sample(advantages, valid)

    return weigh


def _per_sample(advantages: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the weights of advantages: a sum over the group, in place of a mean."""
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
    # A key for each prompt: what it draws does not depend on the devices that the batch is on.
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    k = jnp.broadcast_to(k, rows.shape)
    one = lambda c, k, v, key: advantages(c, k, method=method, key=key, where=v)  # noqa: E731
    return jax.vmap(one)(correct, k, valid, keys)


def _own(name: str) -> Callable[..., jax.Array]:
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"expected one of {', '.join(NAMES)}, or your own as module:function.")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as e:
        raise ValueError(
            f"{e}; the module is imported as Python does, from the directory the run starts in."
        ) from None


def check(estimator: Estimator, n: int, ks: list[int]) -> None:
    """Raises a ValueError, before anything compiles, if it cannot serve n and these k."""
    weigh, name = make(estimator), estimator.name
    for k in ks:
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
        except Exception as e:  # Of the user's function, of whatever type.
            raise ValueError(f"it fails on [2, {n}] rewards: {type(e).__name__}: {e}") from None


def largest_k(estimator: Estimator, n: int) -> float:
    """Returns the largest k that a group of n serves."""
    if estimator.name == "mahdavi" or estimator.name not in NAMES:
        return np.inf
    needs_rest = estimator.name == "pkpo" and estimator.baseline in ("loo", "centered")
    return n - 1 if needs_rest else n
