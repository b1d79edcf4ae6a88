"""Sampling, which prefills each prompt once and decodes n responses that share its prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.typing import VariableDict

from pkpo_jax.policy import gemma

# Responses go on in a smaller batch once a share of 1 / _FEW is left.
_FEW = 8
# This is the scope of the loops of these batches, by which the compiled text tells them apart.
STRAGGLERS = "stragglers"


class Rollout(NamedTuple):
    """n responses to each of P prompts, up to T tokens each.

    Attributes:
      tokens: [P, n, T] int32, PAD after the end of a response.
      lengths: [P, n] int32, the number of tokens of each response, including its stop token.
      mask: [P, n, T] bool, True on the tokens of a response.
      log_probs: [P, n, T] float32, log-probs of the tokens under softmax(logits / temperature),
        0 off the mask.
      entropy: [P, n, T] float32 in nats, of the policy's distribution at each token, 0 off the
        mask.
      finished: [P, n] bool, False for responses of T tokens without a stop token.
    """

    tokens: jax.Array
    lengths: jax.Array
    mask: jax.Array
    log_probs: jax.Array
    entropy: jax.Array
    finished: jax.Array


def sample(
    model: gemma.Gemma,
    params: VariableDict,
    prompts: jax.Array,
    lengths: jax.Array,
    key: jax.Array,
    temperature: jax.typing.ArrayLike,
    *,
    n: int,
    max_response: int,
    stop_tokens: tuple[int, ...],
    top_p: float = 1.0,
    head_rows: int | None = None,
    compact: bool = False,
    rows: jax.Array | None = None,
) -> Rollout:
    """Samples n responses to each prompt.

    Each response has its own random stream, folded from `key`, the number of its row and its place
    in the group, so that the responses to a prompt do not depend on the batch around it. Jit this
    function with all keyword-only arguments but `rows` static.

    Args:
      model: the network.
      params: parameters of `model`.
      prompts: [P, L] int32, right-padded.
      lengths: [P] int32, the number of tokens of each prompt, at least 1.
      key: random key of this call.
      temperature: scalar, may be traced. The policy is softmax(logits / temperature). At 0 the
        likeliest token is taken, and log-probs and entropies are those of temperature 1.
      n: number of responses to each prompt.
      max_response: T, the largest number of tokens of a response.
      stop_tokens: ids of the tokens that end a response.
      top_p: below 1, tokens are sampled from the smallest set of likeliest tokens with this
        probability mass (nucleus sampling). This is for evaluation: log-probs and entropies remain
        those of the whole distribution.
      head_rows: the head runs on so many responses to each prompt at a time, which bounds its
        arrays to [P, head_rows, V]; on all of them if None.
      compact: whether the last eighth of the responses goes on without the others, and then the
        last 64th, if `max_response` is long enough for caches to grow. Tokens stay the same, and
        log-probs differ by rounding. Under pmap each device compacts its own responses. In one
        program over a mesh it would not pay: responses that are left can be anywhere in the batch,
        so that their caches and prefixes would move between devices, each of which holds few.
      rows: [P] int32, the numbers of the rows to fold into `key`; 0..P-1 if None.

    Returns:
      A Rollout. Decoding ends early once every response has one of `stop_tokens`.
    """
    p = prompts.shape[0]
    rows = jnp.arange(p) if rows is None else rows
    fold = jax.vmap(jax.random.fold_in, (None, 0))
    keys = jax.vmap(fold, (0, None))(fold(key, rows), jnp.arange(n))
    prefix: Any = model.apply({"params": params}, prompts, lengths, method="prefill")
    # The loop over tokens reads single layers.
    params, prefix = (gemma.for_decoding(tree, model.config) for tree in (params, prefix))
    sizes = _cache_sizes(max_response)
    # Once so few responses are left, they leave the whole batch, and then the smaller one.
    batches = [p * n // _FEW**level for level in (1, 2)] if compact and len(sizes) > 1 else []
    batches = [count for count in batches if count] + [0]
    last = jnp.broadcast_to(gemma.last_prompt_token(prompts, lengths)[:, None], (p, n))
    greedy = jnp.asarray(temperature) == 0.0
    temperature = jnp.where(greedy, 1.0, temperature)
    empty = jnp.zeros((p, n, max_response))
    state = {
        "t": jnp.int32(0),
        "last": last,
        "keys": keys,
        "prefix": prefix,
        "cache": model.init_cache(p, n, sizes[0]),
        "tokens": empty.astype(jnp.int32),
        "log_probs": empty,
        "entropy": empty,
        "lengths": jnp.zeros((p, n), jnp.int32),
        "finished": jnp.zeros((p, n), bool),
    }

    def choose(hidden: jax.Array, keys: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns the next token of each response, its log-prob, and the entropy."""
        logits: Any = model.apply({"params": params}, hidden, method="logits")
        log_p, entropy = gemma.log_probs_and_entropy(logits, temperature)
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, log_p.shape[-1:])))(keys)
        noisy = jnp.where(greedy, log_p, log_p + noise)
        draw = partial(_draw_from_nucleus, log_p, top_p=top_p) if top_p < 1.0 else _first_maximum
        token = draw(noisy)
        return token, jnp.take_along_axis(log_p, token[..., None], -1)[..., 0], entropy

    def step(s: dict) -> dict:
        t, live = s["t"], ~s["finished"]
        variables, read = {"params": params}, (s["prefix"], t, s["cache"])
        hidden, cache = model.apply(variables, s["last"], *read, method="decode")
        step_keys = jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(s["keys"], t)
        token, log_prob, entropy = _in_parts(choose, head_rows or n, hidden, step_keys)
        token = jnp.where(live, token, gemma.PAD_ID)
        stopped = jnp.isin(token, jnp.array(stop_tokens))

        def write(name: str, value: jax.Array) -> jax.Array:
            return s[name].at[:, :, t].set(jnp.where(live, value, 0))

        return s | {
            "t": t + 1,
            "last": token,
            "cache": cache,
            "tokens": write("tokens", token),
            "log_probs": write("log_probs", log_prob),
            "entropy": write("entropy", entropy),
            "lengths": s["lengths"] + live,
            "finished": s["finished"] | stopped,
        }

    def run(s: dict, size: int, few: int) -> dict:
        """Samples until the cache of this size is full or no more than `few` responses go on."""
        return jax.lax.while_loop(lambda s: (s["t"] < size) & (_left(s) > few), step, s)

    def decode(s: dict, sizes: Sequence[int]) -> tuple[dict, Any]:
        """Samples with a cache of each of these sizes in turn, until few responses go on.

        Returns the results so far, and the rows that go on with their state.
        """

        def grow(s: dict) -> tuple[dict, Any]:
            cache = gemma.grow_cache(model.config, s["cache"], sizes[1])
            return decode(s | {"cache": cache}, sizes[1:])

        def leave(s: dict) -> tuple[dict, Any]:
            if not batches[0]:
                return _results(s), None
            rows, part = _unfinished(s, batches[0])
            cache = gemma.grow_cache(model.config, part["cache"], max_response)
            return _results(s), (rows, part | {"cache": cache})

        s = run(s, sizes[0], batches[0])
        if len(sizes) == 1:
            return leave(s)
        return jax.lax.cond(_left(s) > batches[0], grow, leave, s)

    def go_on(s: dict, level: int) -> dict:
        """Returns the results of a smaller batch, whose cache has room for all tokens."""
        # Each size of a cache is one more loop to compile, and matters less to a smaller batch.
        for size in sizes[:: -(2**level)][::-1]:
            part = run(s | {"cache": _cut(model.config, s["cache"], size)}, size, batches[level])
            s = part | {"cache": jax.tree.map(_put_first, s["cache"], part["cache"])}
        if not batches[level]:
            return _results(s)
        rows, part = _unfinished(s, batches[level])
        return _put(_results(s), rows, go_on(part, level + 1))

    results, rest = decode(state, sizes)
    if rest is not None:
        rows, part = rest
        with jax.named_scope(STRAGGLERS):
            results = _put(results, rows, go_on(part, 1))
    mask = jnp.arange(max_response) < results["lengths"][..., None]
    return Rollout(mask=mask, **results)


def _cache_sizes(max_response: int) -> list[int]:
    """Returns the numbers of tokens for which a cache has room, each about twice the one before.

    Attention reads the whole cache, so that short responses should not pay for long ones.
    """
    sizes = [max_response]
    while sizes[0] > 64:
        sizes.insert(0, -(-sizes[0] // 2))
    return sizes


def _results(s: dict) -> dict:
    """Returns the part of the state that becomes the rollout."""
    return {name: s[name] for name in ("tokens", "log_probs", "entropy", "lengths", "finished")}


def _left(s: dict) -> jax.Array:
    """Returns how many responses have not ended."""
    return (~s["finished"]).sum()


def _unfinished(s: dict, count: int) -> tuple[jax.Array, dict]:
    """Returns the numbers in [P * n] of `count` responses, and their state as groups of one.

    All responses that have not ended are among them if they are not more.
    """
    rows = jnp.argsort(s["finished"].reshape(-1))[:count]
    prompts = rows // s["finished"].shape[1]

    def take(x: jax.Array) -> jax.Array:
        return x.reshape(-1, 1, *x.shape[2:])[rows]

    prefix: gemma.Prefix = jax.tree.map(lambda x: x[prompts], s["prefix"])
    shared = {"t": s["t"], "prefix": prefix}
    return rows, jax.tree.map(take, {k: x for k, x in s.items() if k not in shared}) | shared


def _put(results: dict, rows: jax.Array, part: dict) -> dict:
    """Returns results with those of the responses `rows`, which are groups of one."""

    def put(whole: jax.Array, part: jax.Array) -> jax.Array:
        flat = whole.reshape(-1, *whole.shape[2:])
        return flat.at[rows].set(part[:, 0]).reshape(whole.shape)

    return jax.tree.map(put, results, part)


def _cut(config: gemma.GemmaConfig, cache: gemma.Cache, length: int) -> gemma.Cache:
    """Returns the part of a cache that has room for `length` tokens."""
    sizes = gemma.cache_sizes(config, length)
    cut = lambda kv, size: jax.tree.map(lambda x: x[:, :, :, :size], kv)  # noqa: E731
    return tuple(cut(kv, size) for kv, size in zip(cache, sizes, strict=True))


def _put_first(whole: jax.Array, part: jax.Array) -> jax.Array:
    """Returns a cache with those of its first tokens that `part` has."""
    return whole.at[:, :, :, : part.shape[3]].set(part)


def _in_parts(f: Callable[..., Any], size: int, *arrays: jax.Array) -> Any:
    """Applies f to arrays [P, n, ...], on `size` of the n rows at a time."""
    n = arrays[0].shape[1]
    if size >= n:
        return f(*arrays)
    parts = -(-n // size)
    # The last rows are computed twice where `size` does not divide n.
    rows = jnp.minimum(jnp.arange(parts * size), n - 1).reshape(parts, size)
    results = jax.lax.map(lambda i: f(*(x[:, i] for x in arrays)), rows)
    join = lambda x: jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :n]  # noqa: E731
    return jax.tree.map(join, results)


def _first_maximum(x: jax.Array) -> jax.Array:
    """Returns the smallest index of the maximum of x [..., V], as int32.

    `jnp.argmax` gives the same, but passes pairs of values and indices between devices where the
    last axis is split, and takes several times as long on CPUs.
    """
    ids = jnp.arange(x.shape[-1], dtype=jnp.int32)
    maximal = x == x.max(-1, keepdims=True)
    return jnp.min(jnp.where(maximal, ids, x.shape[-1]), -1)


def _draw_from_nucleus(log_p: jax.Array, noisy: jax.Array, top_p: float) -> jax.Array:
    """Returns the maximum of `noisy` among the smallest set of likeliest tokens of mass `top_p`.

    The maximum among all tokens is mostly in the set. If not, then neither are less likely tokens,
    and the next maximum is sought among likelier ones, for some responses of each group at a time.
    This takes few passes over the tokens, while a sort of the whole vocabulary takes longer than
    all else, and gathers it where it is split. Of equally likely tokens at the edge of the set,
    those with the lowest ids are in it.

    Args:
      log_p: [P, n, V] float32 log-probs.
      noisy: [P, n, V] log-probs with Gumbel noise.
      top_p: the probability mass.

    Returns:
      [P, n] int32 tokens.
    """
    some = -(-log_p.shape[1] // 8)
    take = jax.vmap(lambda x, rows: x[rows])
    put = jax.vmap(lambda x, rows, part: x.at[rows].set(part))

    def draw_again(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        token, outside = state
        rows = jnp.argsort(~outside, 1)[:, :some]
        own, again, p, x = (take(y, rows) for y in (token, outside, log_p, noisy))
        likelier = _first_maximum(jnp.where(_precedes(p, own), x, -jnp.inf))
        own = jnp.where(again, likelier, own)
        return put(token, rows, own), put(outside, rows, ~_in_nucleus(p, own, top_p))

    token = _first_maximum(noisy)
    first = token, ~_in_nucleus(log_p, token, top_p)
    return jax.lax.while_loop(lambda state: state[1].any(), draw_again, first)[0]


def _in_nucleus(log_p: jax.Array, token: jax.Array, top_p: float) -> jax.Array:
    """Returns whether `token` [...] is in the smallest set of likeliest tokens of mass `top_p`.

    It is if the tokens of `log_p` [..., V] that precede it have less mass.
    """
    before = jnp.where(_precedes(log_p, token), jnp.exp(log_p), 0.0).sum(-1)
    # A set whose mass falls short of top_p only by the rounding of the float32 sum is large enough.
    return before < jnp.maximum(top_p - 1e-6, 1e-9)


def _precedes(log_p: jax.Array, token: jax.Array) -> jax.Array:
    """Returns [..., V], whether tokens precede `token` [...] by probability, and then by id."""
    own = jnp.take_along_axis(log_p, token[..., None], -1)
    ids = jnp.arange(log_p.shape[-1])
    return (log_p > own) | ((log_p == own) & (ids < token[..., None]))
