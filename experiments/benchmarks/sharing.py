"""Measures what computing a prompt once for its n responses saves, in sampling and in the gradient.

python -m experiments.benchmarks.sharing

The same sampler, scorer and parameters are used on prompts [P, L] with n responses each (shared),
and on every prompt repeated n times with one response each (repeated). The script prints the time
and the temporary memory of both compiled programs for several L/T/n: prompt tokens, response
tokens, and responses to a prompt. Times are medians of alternating calls in the same process, and
no response ends early.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
import rich.table
from absl import app, flags, logging

import experiments
from pkpo_jax.policy import gemma, sampling, scoring

_REPEATS = flags.DEFINE_integer("repeats", 5, "Number of timed calls of each program.")

PROMPTS = 4
SHAPES = ((32, 32, 16), (256, 32, 16), (1024, 64, 16))
CONFIG = dataclasses.replace(
    gemma.SIZES["tiny"],
    embed_dim=128,
    hidden_dim=512,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    query_pre_attn_scalar=32**-0.5,
    num_embed=256,
    vocab_size=256,
    sliding_window_size=4096,
)


def compare(programs: dict[str, tuple[Callable[..., Any], tuple]]) -> dict[str, tuple[float, int]]:
    """Returns {name: (median seconds, bytes of temporaries)} of programs called in turn."""
    compiled = {name: jax.jit(f).lower(*args).compile() for name, (f, args) in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for repeat in range(_REPEATS.value + 1):
        for name, (_, args) in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(compiled[name](*args))
            if repeat:
                times[name].append(time.perf_counter() - started)
    analyses: dict[str, Any] = {name: compiled[name].memory_analysis() for name in programs}
    return {
        name: (statistics.median(times[name]), analyses[name].temp_size_in_bytes)
        for name in programs
    }


def programs(length: int, responses: int, n: int, *, shared: bool) -> tuple[Any, Any]:
    """Returns the gradient and the sampler for one layout, each as a function and its arguments."""
    model = gemma.Gemma(CONFIG)
    params = jax.jit(gemma.init_params, static_argnums=0)(model, jax.random.key(0))
    prompts = jax.random.randint(jax.random.key(1), (PROMPTS, length), 3, CONFIG.vocab_size)
    tokens = jax.random.randint(jax.random.key(2), (PROMPTS, n, responses), 3, CONFIG.vocab_size)
    if not shared:
        prompts = jnp.repeat(prompts, n, 0)
        tokens = tokens.reshape(PROMPTS * n, 1, responses)
    lengths = jnp.full(len(prompts), length)

    def gradient(params: Any, prompts: jax.Array, lengths: jax.Array, tokens: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return scoring.score(model, params, prompts, lengths, tokens)[0].sum()

        return jax.grad(loss)(params)

    def sample(params: Any, prompts: jax.Array, lengths: jax.Array) -> sampling.Rollout:
        return sampling.sample(
            model,
            params,
            prompts,
            lengths,
            jax.random.key(3),
            1.0,
            n=tokens.shape[1],
            max_response=responses,
            stop_tokens=(),
        )

    return (gradient, (params, prompts, lengths, tokens)), (sample, (params, prompts, lengths))


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    console = rich.console.Console(width=100)
    table = rich.table.Table(
        "L/T/n", "program", "shared, ms", "repeated, ms", "faster", "shared, MB", "repeated, MB"
    )
    for length, responses, n in SHAPES:
        layouts = [programs(length, responses, n, shared=shared) for shared in (True, False)]
        for name, pair in zip(("gradient", "sampling"), zip(*layouts, strict=True), strict=True):
            measured = compare(dict(zip(("shared", "repeated"), pair, strict=True)))
            (fast, small), (slow, large) = measured["shared"], measured["repeated"]
            table.add_row(
                f"{length}/{responses}/{n}",
                name,
                f"{1e3 * fast:.1f}",
                f"{1e3 * slow:.1f}",
                f"{slow / fast:.1f}x",
                f"{small / 1e6:.0f}",
                f"{large / 1e6:.0f}",
            )
    console.print(table)
    sizes = f"{PROMPTS} prompts, {CONFIG.num_layers} layers of {CONFIG.embed_dim}"
    console.print(f"{sizes}; {experiments.machine()}", highlight=False)


if __name__ == "__main__":
    app.run(main)
