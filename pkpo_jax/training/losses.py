"""Losses of responses [prompts, n, T], which can be computed in parts of a batch.

A loss divides by counts of the whole batch, so the losses of the parts add up to that of the batch.

A response of reward weight u (in the SUM convention, see weights.py) adds -scale * u * f to the
loss for each of its tokens: f is the policy objective of the token, and the scale depends on the
aggregation. KL and entropy terms are added equally for every response, with 1/n in place of u.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pkpo_jax.training.config import Aggregation, Divergence, Loss

# Log-ratios are clamped to this many nats before they are exponentiated, as in verl: e^20 is far
# above any useful ratio, and e^89 is infinite in float32. A clamped token has no gradient.
LARGEST_LOG_RATIO = 20.0
# Two programs agree on a float32 log-prob up to this many nats. A smaller difference between a
# policy and its reference counts as none: Adam would scale up a gradient that is only rounding.
ROUNDING = 1e-5
# The factors of the reference in SAGE lie within this range.
GUIDE_RANGE = (0.6, 1.4)


class Tokens(NamedTuple):
    """The values from which the loss of a batch, or of a part of it, is computed.

    Attributes:
      log_probs, entropy: [P, n, T] under the policy that is trained. Only these have gradients.
      old: [P, n, T] log-probs under the policy as it was before the batch's first update.
      sampled: [P, n, T] log-probs under the policy that sampled the tokens, from its sampler.
      reference: [P, n, T] log-probs under the reference policy, or None.
      mask: [P, n, T] bool, the tokens that count.
      weights: [P, n] reward weights of the estimator, or [P, n, T] if those of the tokens differ.
      sizes: [P, 1], how many responses of each group are valid.
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
    """Returns the loss of these tokens, and sums over the tokens for metrics.

    Let u be the reward weight of a token, r = pi / pi_old its importance ratio, and sg a constant
    without gradient. Its policy objective, which the aggregation adds up, is

      "reinforce"  u log pi
      "ppo"        min(r u, clip(r) u)                            (arXiv 1707.06347, equation 7)
      "gspo"       min(s u, clip(s) u), s = sg(exp(mean of log r over the response)) pi / sg(pi)
                   (GSPO-token, arXiv 2507.18071, equations 13-14)
      "cispo"      sg(clip(r)) u log pi                           (arXiv 2506.13585, equations 4-5)

    where clip keeps ratios within 1 - clip_low and 1 + clip_high. With the aggregation
    "sequence-mean" and a weight for each response, the value and the gradient of "gspo" are those
    of GSPO's objective for whole responses (equation 5 there). Where no ratio is clipped and
    pi = pi_old, the gradients of all four are the same.

    Args:
      options: the section `loss` of a config.
      tokens: those of a batch or of a part of it. The losses of the parts add up to that of the
        batch.
      prompts: how many prompts count in the whole batch.
      count: how many tokens count in the whole batch.
    """
    # Ratios are set to 1 off the mask, where values could overflow and their gradients be NaN.
    log_probs = jax.lax.stop_gradient(tokens.log_probs)
    old, sampled = (jnp.where(tokens.mask, x, log_probs) for x in (tokens.old, tokens.sampled))
    t = tokens._replace(old=jax.lax.stop_gradient(old), sampled=sampled)
    if t.reference is not None:
        t = t._replace(reference=jnp.where(t.mask, t.reference, log_probs))
    scale = token_scale(options.aggregation, t.mask, t.sizes, prompts, count)
    objective, clipped = _objective(options, t)
    clamped = _out_of_range(_log_ratios(options, t))
    if options.importance_cap:
        clamped |= _out_of_range(t.old - t.sampled)
        objective *= jnp.minimum(_ratio(t.old, t.sampled), options.importance_cap)
    for_all = options.entropy_coef * t.entropy if options.entropy_coef else 0.0
    sums = {"clipped": clipped, "entropy": t.entropy}
    sums["moved"] = divergence("k3", t.old, log_probs)
    if t.reference is not None:
        sums["kl"] = t.log_probs - t.reference
        anchor = t.reference
        if options.kl == "sage":
            anchor += jnp.log(guide(options, t.entropy))
        clamped |= (options.kl in ("k3", "sage")) & _out_of_range(t.log_probs - anchor)
        if options.kl_coef and not options.kl_in_reward:
            for_all -= options.kl_coef * divergence(options.kl, t.log_probs, anchor)
    sums["clamped"] = clamped
    total = jnp.where(t.mask, scale * (objective + for_all / t.sizes[..., None]), 0.0)
    sums = {name: jnp.where(t.mask, x, 0.0).sum() for name, x in sums.items()}
    return -total.sum(), sums


@dataclasses.dataclass(frozen=True)
class PolicyLoss(Loss):
    """A callable `policy_loss` whose fields are its options, the keys of the section `loss`."""

    def __call__(
        self, tokens: Tokens, prompts: jax.typing.ArrayLike, count: jax.typing.ArrayLike
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns what `policy_loss` returns."""
        return policy_loss(self, tokens, prompts, count)


def _objective(options: Loss, t: Tokens) -> tuple[jax.Array, jax.Array]:
    """Returns each token's weighted objective, and whether its ratio was clipped.

    Clipping removes the gradient of a token, except in CISPO.
    """
    weights = jax.lax.stop_gradient(t.weights)
    weights = weights if weights.ndim == 3 else weights[..., None]
    if options.policy == "reinforce":
        return weights * t.log_probs, jnp.zeros(t.mask.shape, bool)
    ratio = jnp.exp(_clamp(_log_ratios(options, t)))
    low, high = 1.0 - options.clip_low, 1.0 + options.clip_high
    if options.policy == "cispo":
        bound = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
        return bound * weights * t.log_probs, (ratio < low) | (ratio > high)
    # This is the minimum of the two products, but without its halved gradient at a tie.
    clipped = ((weights > 0.0) & (ratio > high)) | ((weights < 0.0) & (ratio < low))
    bound = jnp.clip(ratio, low, high)
    if options.dual_clip:
        too_large = (weights < 0.0) & (ratio > options.dual_clip)
        clipped, bound = clipped | too_large, jnp.where(too_large, options.dual_clip, bound)
    return jnp.where(clipped, jax.lax.stop_gradient(bound), ratio) * weights, clipped


def _log_ratios(options: Loss, t: Tokens) -> jax.Array:
    """Returns the log-ratios [P, n, T] of the policies; for GSPO, their mean over each response.

    In both cases, the gradient is that of the token's own log-prob.
    """
    log_ratios = t.log_probs - t.old
    if options.policy != "gspo":
        return log_ratios
    constant = jax.lax.stop_gradient(log_ratios)
    lengths = jnp.maximum(t.mask.sum(-1, keepdims=True), 1)
    mean = jnp.where(t.mask, constant, 0.0).sum(-1, keepdims=True) / lengths
    return mean + (log_ratios - constant)


def guide(options: Loss, entropy: jax.Array) -> jax.Array:
    """Returns SAGE's factors [P, n, T] of the reference, without gradient (arXiv 2605.18864).

    They are above 1 at tokens where the policy branches, that is, where its entropy [P, n, T] is
    above `guide_entropy` nats, if `guide_strength` is positive.
    """
    excess = jax.nn.relu(jax.lax.stop_gradient(entropy) - options.guide_entropy)
    return jnp.clip(1.0 + options.guide_strength * excess, *GUIDE_RANGE)


def response_ratios(old: jax.Array, sampled: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the importance ratios of whole responses, [P, n].

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
    """Returns rewards [P, n] minus `kl_coef` times the summed log-ratio of each response.

    The sum of log pi - log reference over the tokens is an unbiased estimate of the KL divergence
    of the whole response. With reward weights that are linear in the reward (k = 1), its gradient
    is that of the divergence; for larger k the objective is max@k of the penalised rewards.
    """
    return rewards - options.kl_coef * jnp.where(mask, old - reference, 0.0).sum(-1)


def token_scale(
    aggregation: Aggregation,
    mask: jax.Array,
    sizes: jax.Array,
    prompts: jax.typing.ArrayLike,
    tokens: jax.typing.ArrayLike,
) -> jax.Array:
    """Returns the factor [P, n, 1] that multiplies the weighted objective of each token.

    The objective has been multiplied by the reward weight u of the response. Aggregations are:

      "sequence-sum"     the gradient of max@k itself: a sum over the tokens and over the group, a
                         mean over prompts (paper A, equation 18, arXiv 2505.15201)
      "sequence-mean"    a mean over the tokens of a response instead (GRPO, arXiv 2402.03300)
      "constant-length"  sequence-sum divided by T, the largest length (Dr. GRPO, arXiv 2503.20783)
      "token-mean"       a mean over all tokens of the batch, with n u in place of u (DAPO, arXiv
                         2503.14476; paper B)

    Args:
      aggregation: one of these names.
      mask: [P, n, T] bool, the tokens that count.
      sizes: [P, 1], how many responses of each group are valid.
      prompts, tokens: how many of each count in the whole batch.
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
    """Estimates the KL divergence of the policy pi from a reference, at tokens sampled from pi.

    With d = log pi - log reference (Schulman, "Approximating KL Divergence", 2020), the estimates
    and their gradients as terms of the loss, in expectation over tokens sampled from pi, are:

      "k1"  d              unbiased; the gradient is zero, so it does not regularise
      "k2"  d^2 / 2        biased, low variance; the gradient is that of KL(pi || reference)
      "k3"  e^-d - 1 + d   unbiased, >= 0; the gradient is that of KL(reference || pi)

    Each estimates the divergence of the next token given the previous ones. "k2" and "k3" are 0, as
    are their gradients, if |d| is at most `ROUNDING`. For "k3", d is clamped to
    `LARGEST_LOG_RATIO`.

    "sage" is "k3" of a reference that is multiplied by the factors q of `guide` before (SAGE, arXiv
    2605.18864). Its gradient is q times that of KL(reference || pi): q does not depend on the
    token, and the mean of grad log pi is 0.
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
    """Returns the ratio of two probabilities, given their logarithms, clamped to stay finite."""
    return jnp.exp(_clamp(log_probs - others))


def _clamp(log_ratio: jax.Array) -> jax.Array:
    return jnp.clip(log_ratio, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def _out_of_range(log_ratio: jax.Array) -> jax.Array:
    return jnp.abs(log_ratio) > LARGEST_LOG_RATIO


def supervised(log_probs: jax.Array, mask: jax.Array, tokens: jax.typing.ArrayLike) -> jax.Array:
    """Returns the cross-entropy, in nats, of the tokens on the mask.

    It is divided by `tokens`, the number of tokens on the mask in the whole batch.
    """
    return -jnp.where(mask, log_probs, 0.0).sum() / jnp.maximum(tokens, 1)
