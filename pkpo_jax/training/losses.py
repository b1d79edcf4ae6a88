"""Losses on responses [prompts, n, T], exact in parts: their counts are of the whole batch.

A response of weight u (in the SUM convention, see weights.py) adds -scale * u * f to the loss for
each of its tokens: f is the policy objective of the token, and the scale is what the aggregation
makes of it. KL and entropy are added for every response alike, with 1/n in place of u.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pkpo_jax.training.config import Aggregation, Divergence, Loss

# Log-ratios are clamped to this many nats before they are exponentiated, as verl does: e^20 is far
# beyond any ratio of use, and e^89 is infinite in float32. A clamped token has no gradient.
LARGEST_LOG_RATIO = 20.0
# Two programs agree on a float32 log-prob up to this many nats. A policy no farther than that from
# its reference is taken to be equal to it: Adam would scale up a gradient of mere rounding.
ROUNDING = 1e-5


class Tokens(NamedTuple):
    """What the loss of a batch, or of a part of it, is computed from; all constants but log-probs.

    Attributes:
      log_probs, entropy: [P, n, T] under the policy that is trained, differentiable.
      old: [P, n, T] log-probs under the policy as it was before the batch's first update.
      sampled: [P, n, T] log-probs under the policy that drew the tokens, as its sampler gave them.
      reference: [P, n, T] log-probs under the reference policy, or None.
      mask: [P, n, T] bool, tokens that count.
      weights: [P, n], of the estimator; sizes: [P, 1] valid responses of each group.
    """

    log_probs: jax.Array
    entropy: jax.Array
    old: jax.Array
    sampled: jax.Array
    reference: jax.Array | None
    mask: jax.Array
    weights: jax.Array
    sizes: jax.Array


def policy_loss(
    options: Loss, tokens: Tokens, prompts: jax.typing.ArrayLike, count: jax.typing.ArrayLike
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the loss of these tokens, and sums over them for metrics.

    `prompts` and `count` are the prompts and the tokens that count in the whole batch, of which
    these may be a part: the losses of the parts add up to that of the batch.
    """
    # Off the mask ratios are 1: what stands there could overflow, and its gradient be NaN.
    log_probs = jax.lax.stop_gradient(tokens.log_probs)
    old, sampled = (jnp.where(tokens.mask, x, log_probs) for x in (tokens.old, tokens.sampled))
    t = tokens._replace(old=jax.lax.stop_gradient(old), sampled=sampled)
    if t.reference is not None:
        t = t._replace(reference=jnp.where(t.mask, t.reference, log_probs))
    scale = token_scale(options.aggregation, t.mask, t.sizes, prompts, count)
    objective, clipped = _objective(options, t)
    clamped = _out_of_range(t.log_probs - t.old)
    if options.importance_cap:
        clamped |= _out_of_range(t.old - t.sampled)
        objective *= jnp.minimum(_ratio(t.old, t.sampled), options.importance_cap)
    for_all = options.entropy_coef * t.entropy if options.entropy_coef else 0.0
    sums = {"clipped": clipped, "entropy": t.entropy}
    sums["moved"] = divergence("k3", t.old, log_probs)
    if t.reference is not None:
        clamped |= (options.kl == "k3") & _out_of_range(t.log_probs - t.reference)
        sums["kl"] = t.log_probs - t.reference
        if options.kl_coef and not options.kl_in_reward:
            for_all -= options.kl_coef * divergence(options.kl, t.log_probs, t.reference)
    sums["clamped"] = clamped
    total = jnp.where(t.mask, scale * (objective + for_all / t.sizes[..., None]), 0.0)
    sums = {name: jnp.where(t.mask, x, 0.0).sum() for name, x in sums.items()}
    return -total.sum(), sums


@dataclasses.dataclass(frozen=True)
class PolicyLoss(Loss):
    """Computes `policy_loss` with its own fields, the keys of a config's section `loss`."""

    def __call__(
        self, tokens: Tokens, prompts: jax.typing.ArrayLike, count: jax.typing.ArrayLike
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns what `policy_loss` returns."""
        return policy_loss(self, tokens, prompts, count)


def _objective(options: Loss, t: Tokens) -> tuple[jax.Array, jax.Array]:
    """Returns each token's weighted objective, and whether a clip took its gradient away."""
    weights = jax.lax.stop_gradient(t.weights)[..., None]
    if options.policy == "reinforce":
        return weights * t.log_probs, jnp.zeros(t.mask.shape, bool)
    ratio = _ratio(t.log_probs, t.old)
    low, high = 1.0 - options.clip_low, 1.0 + options.clip_high
    # The minimum of the two products, without the halved gradient that one has at a tie.
    clipped = ((weights > 0.0) & (ratio > high)) | ((weights < 0.0) & (ratio < low))
    bound = jnp.clip(ratio, low, high)
    if options.dual_clip:
        too_large = (weights < 0.0) & (ratio > options.dual_clip)
        clipped, bound = clipped | too_large, jnp.where(too_large, options.dual_clip, bound)
    return jnp.where(clipped, jax.lax.stop_gradient(bound), ratio) * weights, clipped


def response_ratios(old: jax.Array, sampled: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the importance ratios [P, n] of whole responses.

    Args:
      old: [P, n, T] float32 log-probs of the tokens under the policy that is updated.
      sampled: [P, n, T] float32 log-probs under the policy that sampled them.
      mask: [P, n, T] bool, the tokens that count.
    """
    log_ratios = jnp.where(mask, old - sampled, 0.0).sum(-1)
    return jnp.exp(jnp.clip(log_ratios, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))


def penalised(
    options: Loss, rewards: jax.Array, old: jax.Array, reference: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns rewards [P, n] less `kl_coef` times the summed log-ratio of each response.

    Summed over tokens, log pi - log reference is an unbiased estimate of the KL divergence of the
    whole response. With weights linear in the reward (k = 1) its gradient is that of the
    divergence; for larger k the objective is max@k of the penalised rewards.
    """
    return rewards - options.kl_coef * jnp.where(mask, old - reference, 0.0).sum(-1)


def token_scale(
    aggregation: Aggregation,
    mask: jax.Array,
    sizes: jax.Array,
    prompts: jax.typing.ArrayLike,
    tokens: jax.typing.ArrayLike,
) -> jax.Array:
    """[P, n, 1]: what the objective of a token is multiplied by, its response having weight u.

      "sequence-sum"     the gradient of max@k itself: a sum over tokens and over the group, a mean
                         over prompts (paper A, equation 19, arXiv 2505.15201)
      "sequence-mean"    a mean over a response's tokens instead (GRPO, arXiv 2402.03300)
      "constant-length"  sequence-sum over T, the most tokens there can be (Dr. GRPO, 2503.20783)
      "token-mean"       a mean over all tokens of the batch, of n u (DAPO, 2503.14476; paper B)

    Args:
      mask: [P, n, T] bool, tokens that count; sizes: [P, 1], valid responses of each group.
      prompts, tokens: how many of each the whole batch has.
    """
    lengths = jnp.maximum(mask.sum(-1, keepdims=True), 1)
    prompts = jnp.maximum(prompts, 1)
    scale = {
        "sequence-sum": 1.0 / prompts,
        "sequence-mean": 1.0 / (prompts * lengths),
        "constant-length": 1.0 / (prompts * mask.shape[-1]),
        "token-mean": sizes[..., None] / jnp.maximum(tokens, 1),
    }[aggregation]
    return jnp.broadcast_to(scale, lengths.shape).astype(jnp.float32)


def divergence(kind: Divergence, log_probs: jax.Array, reference: jax.Array) -> jax.Array:
    """An estimate, at tokens drawn from the policy pi, of its KL divergence from a reference.

    With d = log pi - log reference (Schulman, "Approximating KL Divergence", 2020), and its
    gradient as a term of the loss, over tokens that pi drew:

      "k1"  d              unbiased; the gradient is zero in expectation: it does not regularise
      "k2"  d^2 / 2        biased, low variance; the gradient is that of KL(pi || reference)
      "k3"  e^-d - 1 + d   unbiased, >= 0; the gradient is that of KL(reference || pi)

    Each is of the next token, given those before it. "k2" and "k3" are 0, and so is their gradient,
    where d is within `ROUNDING`; for "k3", d is clamped to `LARGEST_LOG_RATIO`.
    """
    d = log_probs - reference
    if kind == "k1":
        return d
    d = jnp.where(jnp.abs(d) > ROUNDING, d, 0.0)
    if kind == "k2":
        return 0.5 * d * d
    d = _clamp(d)
    return jnp.expm1(-d) + d


def _ratio(log_probs: jax.Array, others: jax.Array) -> jax.Array:
    """Returns the finite ratio of two probabilities, given by their logarithms."""
    return jnp.exp(_clamp(log_probs - others))


def _clamp(log_ratio: jax.Array) -> jax.Array:
    return jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def _out_of_range(log_ratio: jax.Array) -> jax.Array:
    return jnp.abs(log_ratio) > LARGEST_LOG_RATIO


def supervised(log_probs: jax.Array, mask: jax.Array, tokens: jax.typing.ArrayLike) -> jax.Array:
    """Cross-entropy of the tokens on the mask, nats, over `tokens`, those of the whole batch."""
    return -jnp.where(mask, log_probs, 0.0).sum() / jnp.maximum(tokens, 1)
