"""Measures how far the network is from that of the `gemma` package, which has to be installed.

python -m tests.policy.parity

prints a table of the differences, which test_gemma_live.py bounds.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table

from pkpo_jax.policy import gemma, official
from tests.policy import gemma_golden

# The sizes that the package has too.
OFFICIAL = tuple(size for size in gemma.SIZES if size != "tiny")


def sizes(size):
    """Returns every field of the official config, and its value according to SIZES[size]."""
    gm = official.gemma()
    ours = gemma.SIZES[size]
    official_name = f"Gemma2_{size}" if ours.generation == 2 else size.capitalize()
    theirs = getattr(gm.nn, official_name[:7] + official_name[7:].upper()).config
    same = ("num_embed", "embed_dim", "hidden_dim", "num_heads", "num_kv_heads", "head_dim")
    same += ("final_logit_softcap", "attn_logits_soft_cap", "sliding_window_size")
    same += ("transpose_gating_einsum", "use_qk_norm", "local_base_frequency")
    same += ("global_base_frequency", "global_scale_factor")
    expected = {field: getattr(ours, field) for field in same} | {
        "use_post_attn_norm": True,
        "use_post_ffw_norm": True,
        "local_scale_factor": 1.0,
        "attention_types": [
            "GLOBAL" if ours.is_global(i) else "LOCAL_SLIDING" for i in range(ours.num_layers)
        ],
        "query_pre_attn_norm": ours.query_pre_attn_scalar,
    }
    found = {field.name: getattr(theirs, field.name) for field in dataclasses.fields(theirs)}
    # What reads images is no part of the text model.
    del found["vision_encoder"]
    found["attention_types"] = [kind.name for kind in theirs.attention_types]
    found["query_pre_attn_norm"] = theirs.query_pre_attn_scalar()
    return found, expected


def logits(name):
    """Computes our logits and theirs, [sequences, tokens, V], without PAD, which ours mask."""
    model = gemma.Gemma(gemma_golden.CONFIGS[name])
    params, tokens = gemma_golden.params(name), gemma_golden.tokens()

    @jax.jit
    def ours(params, tokens):
        hidden, _ = model.apply({"params": params}, tokens[:, None])
        return model.apply({"params": params}, hidden[:, 0], method="logits")

    theirs = gemma_golden.reference(name).apply({"params": params}, tokens).logits
    return ours(gemma.stack(params), tokens)[..., 1:], theirs[..., 1:]


def decoding(name):
    """Computes our logits and theirs from caches, [steps, P, n, V].

    After the prefill, both decode token by token: two responses to each of three prompts, which are
    longer and shorter than the window.
    """
    rng = np.random.default_rng(2)
    lengths, n, steps = np.array([9, 1, 4]), 2, 8
    prompts = rng.integers(3, 50, (3, 9)) * (np.arange(9) < lengths[:, None])
    arguments = name, prompts, lengths, rng.integers(3, 50, (3, n, steps))
    return (np.stack(list(f(*arguments)))[..., 1:] for f in (_our_logits, _their_logits))


def _our_logits(name, prompts, lengths, responses):
    """Computes our logits [P, n, V] after the prompt and after each token of the responses."""
    model = gemma.Gemma(gemma_golden.CONFIGS[name])
    variables = {"params": gemma.stack(gemma_golden.params(name))}

    @jax.jit
    def step(prefix, cache, start, tokens):
        hidden, cache = model.apply(
            variables, tokens[..., None], prefix=prefix, start=start, cache=cache
        )
        return model.apply(variables, hidden[:, :, 0], method="logits"), cache

    prefix = model.apply(variables, prompts, lengths, method="prefill")
    count, n, steps = responses.shape
    cache = model.init_cache(count, n, steps + 1)
    last = gemma.last_prompt_token(jnp.asarray(prompts), lengths)
    tokens = jnp.broadcast_to(last[:, None], (count, n))
    for t in range(steps + 1):
        logits, cache = step(prefix, cache, t, tokens)
        yield logits
        if t < steps:
            tokens = responses[..., t]


def _their_logits(name, prompts, lengths, responses):
    """Computes the same logits with their network, where every response caches its own prompt."""
    model, params = gemma_golden.reference(name), gemma_golden.params(name)
    (count, length), (_, n, steps) = prompts.shape, responses.shape
    prompts, lengths = np.repeat(prompts, n, 0), np.repeat(lengths, n)
    responses = responses.reshape(count * n, steps)
    size = length + steps
    cache = model.config.init_cache(count * n, jnp.float32, cache_length=size)
    run = functools.partial(model.apply, {"params": params})
    at = np.arange(size)

    # The padding of a prompt stays in the cache before the response, and is masked.
    positions = np.broadcast_to(np.arange(length), prompts.shape)
    mask = np.broadcast_to(at <= np.arange(length)[:, None], (count * n, length, size))
    out = run(prompts, positions=positions, cache=cache, attention_mask=mask)
    logits = out.logits[np.arange(count * n), lengths - 1]
    for t in range(steps):
        yield logits.reshape(count, n, -1)
        mask = (at < lengths[:, None]) | ((length <= at) & (at <= length + t))
        out = run(
            responses[:, t : t + 1],
            positions=lengths[:, None] + t,
            cache=out.cache,
            attention_mask=mask[:, None],
        )
        logits = out.logits[:, 0]
    yield logits.reshape(count, n, -1)


def main():
    table = rich.table.Table("configuration", "compared", "largest difference")
    for size in OFFICIAL:
        found, expected = sizes(size)
        same = sum(found[field] == expected[field] for field in found)
        table.add_row(size, f"{len(found)} fields of the config", f"{len(found) - same} differ")
    for name in gemma_golden.CONFIGS:
        for label, compare in (("logits", logits), ("prefill and decoding", decoding)):
            ours, theirs = compare(name)
            largest = f"{np.abs(ours - theirs).max():.1e} of {np.abs(theirs).max():.1f}"
            table.add_row(f"tiny, as {name}", label, largest)
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
