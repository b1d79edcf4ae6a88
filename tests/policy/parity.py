"""Measures how far the network is from those of the packages `gemma` and `transformers`.

python -m tests.policy.parity [--checkpoint=DIR]

prints a table of the differences from each of the two that is installed. test_gemma_live.py and
test_hugging_face.py bound them. With a directory of Hugging Face, the logits of its model are
compared too, on a text of this file.
"""

import argparse
import dataclasses
import functools
import importlib.util
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from etils import epath

from pkpo_jax import parallel
from pkpo_jax.policy import checkpoints, gemma, hugging_face_export, official, tokenizers
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


def logits(name, tokens=None):
    """Computes our logits and theirs, [sequences, tokens, V], without PAD, which ours mask."""
    model = gemma.Gemma(gemma_golden.CONFIGS[name])
    params = gemma_golden.params(name)
    tokens = gemma_golden.tokens() if tokens is None else tokens

    @jax.jit
    def ours(params, tokens):
        hidden = model.apply({"params": params}, tokens)
        return model.apply({"params": params}, hidden, method="logits")

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
        hidden, cache = model.apply(variables, tokens, prefix, start, cache, method="decode")
        return model.apply(variables, hidden, method="logits"), cache

    prefix = model.apply(variables, prompts, lengths, method="prefill")
    params = variables["params"]
    prefix, params = (gemma.for_decoding(x, model.config) for x in (prefix, params))
    variables = {"params": params}
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


def of_transformers(path, params, config, tokens):
    """Computes our logits and those of transformers, which loads the directory at `path`.

    The tokens that are never sampled, which ours mask, are left out.
    """
    import torch
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        expected = theirs(torch.from_numpy(np.array(tokens))).logits.numpy()
    model = gemma.Gemma(config)

    @jax.jit
    def ours(params, tokens):
        hidden = model.apply({"params": params}, tokens)
        return model.apply({"params": params}, hidden, method="logits")

    sampled = np.ones(config.vocab_size, bool)
    sampled[list(config.never_sampled)] = False
    found = np.asarray(ours(params, tokens))[..., : config.vocab_size]
    return found[..., sampled], expected[..., : config.vocab_size][..., sampled]


def exported(name, directory):
    """Computes our logits and those of transformers from what an export has written."""
    params, config = gemma.stack(gemma_golden.params(name)), gemma_golden.CONFIGS[name]
    path = epath.Path(directory) / name.replace(" ", "_").replace(",", "")
    hugging_face_export.write(path, params, config)
    return of_transformers(str(path), params, config, gemma_golden.tokens())


def read(path):
    """Computes our logits and those of transformers for a published checkpoint."""
    config = gemma.SIZES[checkpoints.size(path)]
    init = functools.partial(gemma.init_params, gemma.Gemma(config))
    mesh = parallel.make_mesh((1, 1, 1), jax.devices()[:1])
    like = parallel.abstract(jax.eval_shape(init, jax.random.key(0)), mesh)
    params = checkpoints.find(path, config).read(like)
    tokenizer = tokenizers.OFFICIAL[config.generation](str(epath.Path(path) / "tokenizer.model"))
    return of_transformers(path, params, config, np.array([tokenizer.encode_prompt(__doc__)]))


def _installed(name):
    return importlib.util.find_spec(name) is not None


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", help="a directory of Hugging Face to compare too")
    arguments = parser.parse_args()
    table = rich.table.Table("configuration", "compared", "largest difference")

    def add(name, label, ours, theirs):
        largest = np.abs(ours - theirs).max()
        span = f"{theirs.min():.1f} to {theirs.max():.1f}"
        table.add_row(name, label, f"{largest:.1e} on logits of {span}")

    if _installed("gemma"):
        for size in OFFICIAL:
            found, expected = sizes(size)
            same = sum(found[field] == expected[field] for field in found)
            table.add_row(size, f"gemma: {len(found)} fields", f"{len(found) - same} differ")
        for name in gemma_golden.CONFIGS:
            add(f"tiny, as {name}", "gemma: logits", *logits(name))
            add(f"tiny, as {name}", "gemma: prefill and decoding", *decoding(name))
        long = np.random.default_rng(3).integers(3, 50, (1, 8192))
        for name in ("2b", "gemma3, 8 layers"):
            add(f"tiny, as {name}", "gemma: logits of 8,192 tokens", *logits(name, long))
    if _installed("transformers"):
        with tempfile.TemporaryDirectory() as directory:
            for name in gemma_golden.CONFIGS:
                add(f"tiny, as {name}", "transformers: logits", *exported(name, directory))
        if arguments.checkpoint:
            add(arguments.checkpoint, "transformers: logits", *read(arguments.checkpoint))
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
