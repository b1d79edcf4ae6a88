"""The reward weights of a config's estimator: one function of a graded batch, in one convention.

Some estimators give reward weights, whose SUM over the group estimates a gradient; others give
advantages, whose mean over the group does. Here all of them become reward weights: an advantage is
divided by the size of its group, so that changing the estimator or k does not change the scale of
a step by n.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pkpo_jax import estimators
from pkpo_jax.estimators import Mixture, passk_training, subset_scores
from pkpo_jax.tasks import Problem, Task
from pkpo_jax.training.config import Estimator

# This is the type of the function that `make` returns.
Weigh = Callable[..., jax.Array]


class Inputs(NamedTuple):
    """The inputs of an estimator, a graded batch; `make` describes the attributes."""

    rewards: jax.Array
    k: Any
    valid: jax.Array
    rows: jax.Array
    key: jax.Array
    entropy: jax.Array
    ratios: jax.Array | None
    classes: Any
    embeddings: Any
    earlier: Any

    @property
    def correct(self) -> jax.Array:
        """[P, n] bool, which rewards count as right."""
        return self.rewards >= 1.0


def _off_policy(e: Estimator, g: Inputs) -> jax.Array:
    ratios = jnp.ones_like(g.rewards) if g.ratios is None else g.ratios
    return estimators.off_policy_weights(g.rewards, g.k, ratios, where=g.valid)


def _volume(e: Estimator, g: Inputs) -> jax.Array:
    """Takes answers for directions, of which different ones are orthogonal, or embeddings."""
    n = g.rewards.shape[-1]
    if e.embeddings:
        lengths = jnp.linalg.norm(g.embeddings, axis=-1, keepdims=True)
        directions = g.embeddings / jnp.maximum(lengths, jnp.finfo(jnp.float32).tiny)
    else:
        directions = jax.nn.one_hot(g.classes, n, dtype=jnp.float32)
    if n <= subset_scores.LARGEST_ENUMERATED:
        return estimators.volume_weights(g.rewards, directions, g.valid)
    one = lambda r, d, v, key: estimators.volume_weights(r, d, v, key=key)  # noqa: E731
    return jax.vmap(one)(g.rewards, directions, g.valid, _keys(g))


def _posterior(e: Estimator, g: Inputs) -> jax.Array:
    right, wrong = (0.0, 0.0) if g.earlier is None else g.earlier
    return estimators.posterior_advantages(
        g.correct, g.k, right, wrong, g.valid, prior=(e.prior, e.prior)
    )


def _passk_training(e: Estimator, g: Inputs) -> jax.Array:
    advantages, method = passk_training.passk_training_advantages, e.method
    if method != "bootstrap":
        return advantages(g.correct, g.k, method=method, entropy=g.entropy, where=g.valid)
    k = jnp.broadcast_to(g.k, g.rows.shape)
    one = lambda c, k, v, key: advantages(c, k, method=method, key=key, where=v)  # noqa: E731
    return jax.vmap(one)(g.correct, k, g.valid, _keys(g))


def _keys(g: Inputs) -> jax.Array:
    """Returns a key of each prompt, so that its draws do not depend on how a batch is sharded."""
    return jax.vmap(jax.random.fold_in, (None, 0))(g.key, g.rows)


def _base(e: Estimator, g: Inputs) -> jax.Array:
    """Returns the advantages that edas and rarity reshape."""
    base = dataclasses.replace(e, name=e.base)
    if e.base in _ADVANTAGES:
        return _ADVANTAGES[e.base](base, g)
    return _WEIGHTS[e.base](base, g) * _sizes(g.valid)


_WEIGHTS: dict[str, Callable[[Estimator, Inputs], jax.Array]] = {
    "pkpo": lambda e, g: estimators.pkpo_weights(
        g.rewards, g.k, baseline=e.baseline, where=g.valid
    ),
    "off_policy": _off_policy,
    "tang": lambda e, g: estimators.tang_weights(g.rewards, g.valid),
    "shapley": lambda e, g: estimators.shapley_weights(g.rewards, g.valid),
    "quantile": lambda e, g: estimators.quantile_weights(g.rewards, g.k, e.quantile, g.valid),
    "top_mean": lambda e, g: estimators.top_mean_weights(g.rewards, g.k, e.top, g.valid),
    "trimmed_mean": lambda e, g: estimators.trimmed_mean_weights(g.rewards, g.k, e.trim, g.valid),
    "pass_hat_k": lambda e, g: estimators.pass_hat_k_weights(
        g.correct, g.k, baseline=e.baseline, where=g.valid
    ),
    "distinct": lambda e, g: estimators.distinct_weights(g.correct, g.classes, g.k, g.valid),
    "poly_epo": lambda e, g: estimators.poly_epo_weights(g.rewards, g.classes, g.k, g.valid),
    "distinct_shapley": lambda e, g: estimators.distinct_shapley_weights(
        g.correct, g.classes, g.valid
    ),
    "volume": _volume,
    "tail_extrapolated": lambda e, g: estimators.tail_extrapolated_weights(g.rewards, g.k, g.valid),
}
_ADVANTAGES: dict[str, Callable[[Estimator, Inputs], jax.Array]] = {
    "passk_training": _passk_training,
    "grpo": lambda e, g: estimators.grpo_advantages(g.rewards, g.valid),
    "dr_grpo": lambda e, g: estimators.dr_grpo_advantages(g.rewards, g.valid),
    "rloo": lambda e, g: estimators.rloo_advantages(g.rewards, g.valid),
    "maxrl": lambda e, g: estimators.maxrl_advantages(g.correct, g.valid),
    "tailrl": lambda e, g: estimators.tailrl_advantages(g.rewards, g.valid),
    "mahdavi": lambda e, g: estimators.mahdavi_advantages(g.correct, g.k, g.valid),
    "entropic": lambda e, g: estimators.entropic_advantages(g.rewards, g.valid),
    "quantile_baseline": lambda e, g: estimators.quantile_baseline_advantages(
        g.rewards, e.quantile, g.valid
    ),
    "pacevolve": lambda e, g: estimators.pacevolve_advantages(g.rewards, g.k, g.valid),
    "edas": lambda e, g: estimators.edas_advantages(_base(e, g), g.correct, g.classes, g.valid),
    "rarity": lambda e, g: estimators.rarity_advantages(_base(e, g), g.correct, g.classes, g.valid),
    "bbg": lambda e, g: estimators.bbg_advantages(g.correct, g.k, g.valid),
    "posterior": _posterior,
}
NAMES = (*_WEIGHTS, *_ADVANTAGES)
WITHOUT_K = (
    *("grpo", "dr_grpo", "rloo", "maxrl", "tailrl", "shapley", "entropic", "quantile_baseline"),
    *("distinct_shapley", "volume"),
)
# These take a mixture of several k; the others need one k at a time.
MIXED = ("pkpo", "off_policy", "quantile", "top_mean", "trimmed_mean", "pass_hat_k", "pacevolve")
# These read a reward as right (at least 1) or wrong.
BINARY = (
    *("passk_training", "maxrl", "mahdavi", "pass_hat_k", "distinct", "distinct_shapley", "bbg"),
    "posterior",
)
# These reshape the advantages of estimator.base, for right and for wrong answers separately.
SHAPED = ("edas", "rarity")
# These look at which responses of a group gave equal answers.
CLASSED = ("distinct", "poly_epo", "distinct_shapley", "volume", *SHAPED)
# The objective of these needs k < n samples.
_NEED_REST = ("quantile", "top_mean", "trimmed_mean", "distinct", "poly_epo")


def make(estimator: Estimator) -> Weigh:
    """Returns a function of a graded batch that computes its reward weights.

    The arguments of that function are rewards, k and valid, and by keyword the others:
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
      classes: [P, n] int32, equal for equal answers of a group, as `answer_classes` returns. Only
        those for which `needs_classes` is true use them; for the others it may be None.
      embeddings: [P, n, D] float32, the mean hidden state of each response, or None. Only those for
        which `needs_embeddings` is true use them.
      earlier: two arrays [P] float32, how many responses to each prompt were right and wrong at
        earlier visits, as `Visits.earlier` returns; or None, which is a first visit. Only those for
        which `needs_earlier` is true use them.

    It returns [P, n] float32, in the SUM convention.

    Args:
      estimator: the section of a config. Its `name` is one of NAMES, with `baseline` for "pkpo" and
        "pass_hat_k", `method` for "passk_training", `base` for "edas" and "rarity", `quantile`,
        `top` and `trim`. Or it is "module:function", which names a user's function
        (rewards [P, n], k, where [P, n] bool, *others) -> [P, n]. The others are `classes` if the
        key `classes` is True, and then `embeddings` if the key `embeddings` is. Its result is what
        `returns` says: "weights" in the SUM convention, or "advantages", which are then divided by
        the size of their group.

    Raises:
      ValueError: there is no such estimator, or the function cannot be imported.
    """
    name = estimator.name
    custom = None if name in NAMES else import_function(name, NAMES)

    def weigh(
        rewards: jax.Array,
        k: jax.typing.ArrayLike | Mixture,
        valid: jax.Array,
        *,
        rows: jax.Array,
        key: jax.Array,
        entropy: jax.Array,
        ratios: jax.Array | None = None,
        classes: jax.Array | None = None,
        embeddings: jax.Array | None = None,
        earlier: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        if custom:
            others = (classes,) if estimator.classes else ()
            others += (embeddings,) if estimator.embeddings else ()
            weights = jnp.asarray(custom(rewards, k, valid, *others), jnp.float32)
            if weights.shape != rewards.shape:
                raise ValueError(f"it gives {weights.shape}; expected {rewards.shape}.")
            if estimator.returns == "advantages":
                weights = weights / _sizes(valid)
            return jnp.where(valid, weights, 0.0)
        given = Inputs(rewards, k, valid, rows, key, entropy, ratios, classes, embeddings, earlier)
        if name in _WEIGHTS:
            return _WEIGHTS[name](estimator, given)
        return _ADVANTAGES[name](estimator, given) / _sizes(valid)

    return weigh


def _sizes(valid: jax.Array) -> jax.Array:
    """Returns [P, 1], the ratio of advantages, which are averaged, and weights, which are added."""
    return jnp.maximum(valid.sum(-1, keepdims=True), 1)


def needs_classes(estimator: Estimator) -> bool:
    """Returns whether the estimator looks at which responses of a group gave equal answers."""
    if estimator.name == "volume":
        return not estimator.embeddings
    return estimator.name in CLASSED or (estimator.name not in NAMES and estimator.classes)


def needs_embeddings(estimator: Estimator) -> bool:
    """Returns whether the estimator looks at the hidden states of responses."""
    return estimator.embeddings and (estimator.name == "volume" or estimator.name not in NAMES)


def needs_earlier(estimator: Estimator) -> bool:
    """Returns whether the estimator looks at what earlier visits to a problem have shown."""
    return estimator.name == "posterior"


def right_modes(
    task: Task, problem: Problem, responses: Sequence[str], rewards: np.ndarray
) -> list[str | None]:
    """Returns the mode of each right response to a problem, and None for the others."""
    pairs = zip(responses, rewards, strict=True)
    return [task.mode_of(problem, response) if r >= 1.0 else None for response, r in pairs]


def answer_classes(
    answers: Sequence[Sequence[str | None]], modes: Sequence[Sequence[str | None]] | None = None
) -> np.ndarray:
    """Returns [P, n] int32, the first response of each group that is equal to each response.

    Responses are equal if they have one mode, or if both have none and their answers are equal.
    Responses without an answer (None) count as equal.

    Args:
      answers: what `Task.answer` extracts from each response, for groups of one size.
      modes: what `right_modes` returns for each group; None if there are no modes.

    >>> answer_classes([["7", "8", "7", None]])
    array([[0, 1, 0, 3]], dtype=int32)
    >>> answer_classes([["1+2", "2+1", "1+3", "1+3"]], [["1+2", "1+2", None, None]])
    array([[0, 0, 2, 2]], dtype=int32)
    """
    modes = modes or [[None] * len(group) for group in answers]
    keys = [
        [(mode, answer if mode is None else None) for answer, mode in zip(*group, strict=True)]
        for group in zip(answers, modes, strict=True)
    ]
    return np.array([[group.index(key) for key in group] for group in keys], np.int32)


def import_function(name: str, known: Sequence[str]) -> Callable[..., jax.Array]:
    """Returns the user's function that "module:function" names; `known` are the other names.

    Raises:
      ValueError: the name has another form, or the function cannot be imported.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise ValueError(f"expected one of {', '.join(known)}, or your own as module:function.")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as e:
        raise ValueError(
            f"{e}; the module is imported as Python does, from the directory the run starts in."
        ) from None


def check(estimator: Estimator, n: int, ks: Sequence[int | Mixture]) -> None:
    """Raises a ValueError if the estimator cannot serve n and these k, before anything compiles."""
    weigh, name = make(estimator), estimator.name
    for k in ks:
        if isinstance(k, Mixture) and name in NAMES and name not in MIXED:
            raise ValueError(
                f"k={k}, but it takes one k; give one k, or use one of {', '.join(MIXED)}."
            )
        if name in WITHOUT_K and k != 1:
            raise ValueError(f"k={k}, but it takes no k; set k to 1.")
        if name == "tang" and k != n:
            raise ValueError(f"k={k}, but it trains for max@n; set k to rollout.n, {n}.")
    if name in SHAPED:
        _check_base(estimator, n, ks)
    if name not in NAMES:
        _check_custom(weigh, n)


def _check_base(estimator: Estimator, n: int, ks: Sequence[int | Mixture]) -> None:
    silent = estimator.base == "pkpo" and estimator.baseline == "loo_minus_one"
    if estimator.name == "edas" and silent and any(k != 1 for k in ks):
        raise ValueError(
            "it changes nothing with estimator.base='pkpo' and estimator.baseline='loo_minus_one', "
            "which gives wrong responses the weight 0; set estimator.baseline='centered'."
        )
    try:
        check(dataclasses.replace(estimator, name=estimator.base), n, ks)
    except ValueError as e:
        raise ValueError(f"estimator.base={estimator.base!r}: {e}") from None


def _check_custom(weigh: Weigh, n: int) -> None:
    shapes = [((2, n), jnp.float32), ((), jnp.int32), ((2, n), bool), ((2,), jnp.int32)]
    arrays = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    key = jax.eval_shape(lambda: jax.random.key(0))
    entropy = jax.ShapeDtypeStruct((2,), jnp.float32)
    classes = jax.ShapeDtypeStruct((2, n), jnp.int32)
    embeddings = jax.ShapeDtypeStruct((2, n, 4), jnp.float32)
    try:
        jax.eval_shape(
            lambda r, k, v, rows, key, e, c, h: weigh(
                r, k, v, rows=rows, key=key, entropy=e, classes=c, embeddings=h
            ),
            *arrays,
            key,
            entropy,
            classes,
            embeddings,
        )
    except Exception as e:  # The user's function may raise any error.
        raise ValueError(f"it fails on [2, {n}] rewards: {type(e).__name__}: {e}") from None


def largest_k(estimator: Estimator, n: int) -> float:
    """Returns the largest k that a group of n serves."""
    name = estimator.base if estimator.name in SHAPED else estimator.name
    if name in ("mahdavi", "bbg", "posterior", "tail_extrapolated") or name not in NAMES:
        return np.inf
    baseline = name in ("pkpo", "pass_hat_k") and estimator.baseline in ("loo", "centered")
    return n - 1 if baseline or name in _NEED_REST else n
