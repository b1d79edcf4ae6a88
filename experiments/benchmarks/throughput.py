"""Compares the rate of sampling with the device's copy rate, and of updates with its matmul rate.

python -m experiments.benchmarks.throughput --size=2b --prompts=4 --micro_batches=4

The parameters are random, in the shapes of Gemma-2 and in bfloat16, on one device. Decoding is
bound by memory, so its rate is the bytes of parameters, keys and values that the tokens have to
read, per second. The update is bound by arithmetic, so its rate is the operations of its matrix
products per second, including those that rematerialisation repeats. Both are compared with the
rates of a copy and of a product of large matrices on the same device in the same run.
`--profile=DIR` keeps a trace of one call of each.
"""

from __future__ import annotations

import statistics
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import app, flags, logging

import experiments
from pkpo_jax import parallel
from pkpo_jax.policy import tokenizers
from pkpo_jax.reporting import compilation
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import programs, step

_SIZE = flags.DEFINE_enum("size", "tiny", ["tiny", "2b", "9b", "27b"], "Size of the network.")
_PROMPTS = flags.DEFINE_integer(
    "prompts", 4, "Number of prompts in a step, each with 16 responses."
)
_LENGTHS = flags.DEFINE_list("lengths", ["256", "256"], "Tokens of a prompt and of a response.")
_MICRO_BATCHES = flags.DEFINE_integer(
    "micro_batches", 1, "Number of parts in which prompts are scored."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Number of timed calls.")
_PROFILE = flags.DEFINE_string("profile", None, "Directory for a trace that TensorBoard shows.")


def seconds(f: Callable[[], Any]) -> float:
    """Returns the median time of a call in seconds, after one call that compiles."""
    jax.block_until_ready(f())
    times = []
    for _ in range(_REPEATS.value):
        started = time.perf_counter()
        jax.block_until_ready(f())
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def copy_rate(size: int) -> float:
    """Returns the bytes that a program which copies `size` bytes reads and writes per second."""
    x = jnp.ones(size // 2, jnp.bfloat16)
    copy = jax.jit(lambda x: x + 1)
    return 2 * size / seconds(lambda: copy(x))


def matmul_rate(n: int) -> float:
    """Returns the operations per second of a product of two n x n matrices in bfloat16."""
    x = jnp.ones((n, n), jnp.bfloat16)
    multiply = jax.jit(jnp.dot)
    return 2 * n**3 / seconds(lambda: multiply(x, x))


def build() -> programs.Programs:
    config = config_lib.default()
    config.model.size, config.model.remat = _SIZE.value, True
    config.model.dtype = config.model.param_dtype = "bfloat16"
    config.rollout.max_prompt, config.rollout.max_response = map(int, _LENGTHS.value)
    config.train.prompts, config.train.micro_batches = _PROMPTS.value, _MICRO_BATCHES.value
    mesh = parallel.make_mesh((1, 1, 1), jax.devices()[:1])
    vocabulary = 256 if _SIZE.value == "tiny" else tokenizers.Gemma2Tokenizer.vocab_size
    # No token ends a response, so that each has its full length.
    endless = types.SimpleNamespace(vocab_size=vocabulary, stop_tokens=())
    return programs.Programs(config, parallel.Jitted(mesh), endless)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    on_cpu = jax.default_backend() == "cpu"
    copied = copy_rate(2**26 if on_cpu else 2**31)
    multiplied = matmul_rate(1024 if on_cpu else 8192)
    built = build()
    config, model = built.config, built.model.config
    count, n = config.train.prompts, config.rollout.n
    state = built.create(built.random_params(jax.random.key(0)))
    prompts = np.full((count, config.rollout.max_prompt), 5, np.int32)
    lengths = np.full(count, config.rollout.max_prompt, np.int32)
    batch = built.devices.put((prompts, lengths, np.arange(count, dtype=np.int32)), count)
    sampler, scalars = built.sampler(n), (jax.random.key(1), 0, 1.0)
    decoding = seconds(lambda: sampler(state.params, batch, scalars))
    # A decoding step reads the parameters and the keys and values of each prompt once, and those of
    # each response, which has half of its tokens on average.
    tokens = config.rollout.max_response
    parameters = sum(x.nbytes for x in jax.tree.leaves(state.params))
    position = 4 * model.num_kv_heads * model.head_dim * model.num_layers
    cached = count * position * (config.rollout.max_prompt + n * tokens / 2)
    read = tokens * (parameters + cached)

    rollout = sampler(state.params, batch, scalars)
    rewards = jnp.arange(count * n, dtype=jnp.float32).reshape(count, n) % 3
    valid = jnp.ones((count, n), bool)
    graded = step.Batch(*batch, rollout=rollout, rewards=rewards, valid=valid)
    operations = compilation.compile_update(built).flops

    def update() -> Any:
        nonlocal state
        state, metrics = built.update(state, graded, (2, jax.random.key(2), 1.0, 1e-6))
        return metrics

    updating = seconds(update)
    if _PROFILE.value:
        with jax.profiler.trace(_PROFILE.value):
            jax.block_until_ready(sampler(state.params, batch, scalars))
            jax.block_until_ready(update())
    table = rich.table.Table("program", "time, s", "rate", "rate of the device", "share")
    for label, taken, rate, best, unit in (
        ("sampling", decoding, read / decoding, copied, "GB/s copied"),
        ("update", updating, operations / updating, multiplied, "GFLOP/s multiplied"),
    ):
        row = f"{rate / 1e9:,.1f}", f"{best / 1e9:,.1f} {unit}", f"{rate / best:.0%}"
        table.add_row(label, f"{taken:.3f}", *row)
    console = rich.console.Console(width=100)
    console.print(table)
    console.print(
        f"{_SIZE.value}, {count} prompts x {n} responses, {'+'.join(_LENGTHS.value)} tokens; "
        f"{experiments.machine()}",
        highlight=False,
    )


if __name__ == "__main__":
    app.run(main)
