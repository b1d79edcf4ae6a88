"""Measures the gradient and decoding beside a hand-written reference over the same network.

python -m experiments.benchmarks.inner_loop

The reference is `handwritten`. Both sides have the same parameters and the same results, whose
largest difference is printed. The workloads are

  gradient-256, gradient-1024   the gradient of 8 x 16 responses of 32 tokens to prompts of 256 and
                                1,024 tokens, beside which the dense products alone are measured
  decoding                      4 x 16 responses of 256 tokens
  decoding-33M                  4 x 4 responses of 64 tokens, with 33.6M parameters in the layers
  early-stop                    8 x 16 responses with room for 512 tokens, which all stop at 32
  straggler                     the same, but one of the 128 responses goes on to 512
  top-p                         4 x 16 responses of 32 tokens from a vocabulary of 32,768, sampled
                                with top_p = .95, beside the package without it, which here is the
                                reference

Times are medians of calls that take turns in one process, after a first call that compiles. The
spread is half of the distance between quartiles. `--only=NAME` runs the workloads whose names start
with NAME, and `--quick` runs all in a small shape. `--record` appends the result to history.jsonl
beside this file with the commit and the machine, and `--show` prints what is recorded there, a
commit in each row.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import app, flags, logging

from experiments.benchmarks import handwritten, history
from pkpo_jax.policy import gemma, sampling, scoring

_ONLY = flags.DEFINE_string("only", "", "Run the workloads whose names start with this.")
_QUICK = flags.DEFINE_bool("quick", False, "Use small shapes, to see that everything runs.")
_REPEATS = flags.DEFINE_integer("repeats", 5, "Number of timed calls of each side.", lower_bound=1)
_RECORD = flags.DEFINE_bool("record", False, "Append the result to history.jsonl.")
_SHOW = flags.DEFINE_bool("show", False, "Print the recorded results, and run nothing.")

NAME = "inner_loop"
SEED = 0
SMALL = gemma.GemmaConfig(
    num_layers=4,
    embed_dim=256,
    hidden_dim=1024,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    query_pre_attn_scalar=64**-0.5,
    num_embed=256,
    vocab_size=256,
    sliding_window_size=64,
)
LARGE = dataclasses.replace(
    SMALL, num_layers=8, embed_dim=512, hidden_dim=2048, num_heads=12, num_kv_heads=4
)
QUICK = dataclasses.replace(
    SMALL,
    num_layers=2,
    embed_dim=64,
    hidden_dim=64,
    head_dim=16,
    query_pre_attn_scalar=16**-0.5,
    num_embed=64,
    vocab_size=64,
    sliding_window_size=16,
)
# The layers are small beside the head, as in Gemma's smallest networks.
WIDE = dataclasses.replace(SMALL, num_layers=2, num_embed=32_768, vocab_size=32_768)
# Tokens of the Markov chain of `follow_chain`: the last one of each prompt, one that follows itself
# for ever, the one that stops a response, and the first of those that lead to it.
PROMPT, FOREVER, STOP, CHAIN = 1, 2, 3, 4
# At this temperature the chain takes its likeliest step, except at the fork after the prompt.
COLD = 0.01


class Inputs(NamedTuple):
    """A network, its parameters, and prompts [P, L] of `lengths` [P]."""

    model: gemma.Gemma
    params: dict
    prompts: jax.Array
    lengths: jax.Array


class Pair(NamedTuple):
    """A workload on both sides.

    Attributes:
      package: calls the package.
      reference: calls the reference.
      difference: returns the largest difference of the two results, and raises a ValueError where
        they are not those of the workload.
      products: calls the dense products of a gradient alone, or is None.
    """

    package: Callable[[], Any]
    reference: Callable[[], Any]
    difference: Callable[[Any, Any], float]
    products: Callable[[], Any] | None = None


def make_inputs(config: gemma.GemmaConfig, prompts: int, length: int) -> Inputs:
    """Returns random parameters, and prompts of `length` random tokens each."""
    model = gemma.Gemma(config)
    params = jax.jit(gemma.init_params, static_argnums=0)(model, jax.random.key(SEED))
    shape, key = (prompts, length), jax.random.key(SEED + 1)
    tokens = jax.random.randint(key, shape, CHAIN, config.vocab_size)
    return Inputs(model, params, tokens, jnp.full(prompts, length))


def gradient(config: gemma.GemmaConfig, prompts: int, n: int, length: int, tokens: int) -> Pair:
    """Returns the workload of the gradient of the mean of log-probs with random weights."""
    inputs = make_inputs(config, prompts, length)
    params, batch = inputs.params, (inputs.prompts, inputs.lengths)
    shape, keys = (prompts, n, tokens), jax.random.split(jax.random.key(SEED + 2))
    responses = jax.random.randint(keys[0], shape, CHAIN, config.vocab_size)
    weights = jax.random.normal(keys[1], shape)

    def loss_of_package(params: dict) -> jax.Array:
        return (weights * scoring.score(inputs.model, params, *batch, responses)[0]).mean()

    def loss_of_reference(params: dict) -> jax.Array:
        return (weights * handwritten.score(config, params, *batch, responses)).mean()

    def loss_of_products(params: dict) -> jax.Array:
        return handwritten.products(config, params, inputs.prompts, responses)

    def difference(package: Any, reference: Any) -> float:
        """Returns the largest difference relative to the largest entry of the same array."""
        ours = (package[0], gemma.unstack(package[1]))
        relative = jax.tree.map(lambda x, y: abs(x - y).max() / abs(y).max(), ours, reference)
        return float(max(jax.tree.leaves(relative)))

    losses = (loss_of_package, loss_of_reference, loss_of_products)
    package, reference, products = (jax.jit(jax.value_and_grad(loss)) for loss in losses)
    tree = gemma.unstack(params)
    return Pair(
        lambda: package(params), lambda: reference(tree), difference, lambda: products(tree)
    )


def rollout(
    inputs: Inputs,
    lengths: Callable[[np.ndarray], bool],
    *,
    n: int,
    tokens: int,
    temperature: float = 1.0,
    stop_tokens: tuple[int, ...] = (),
    seed: int = SEED,
) -> Pair:
    """Returns the workload of sampling, whose responses have to satisfy `lengths`."""
    model, params, batch = inputs.model, inputs.params, (inputs.prompts, inputs.lengths)
    key, tree = jax.random.key(seed), gemma.unstack(params)
    sizes: Any = {"n": n, "max_response": tokens, "stop_tokens": stop_tokens}
    # The trainer's samplers on a single device are compact too.
    sample = jax.jit(functools.partial(sampling.sample, model, compact=True, **sizes))

    def package() -> sampling.Rollout:
        return sample(params, *batch, key, temperature)

    def reference() -> sampling.Rollout:
        return handwritten.sample(model.config, tree, *batch, key, temperature, **sizes)

    def difference(package: sampling.Rollout, reference: sampling.Rollout) -> float:
        """Returns the largest difference of log-probs among the responses with equal tokens.

        Rounding may decide which of two tokens is sampled, but only in few responses.
        """
        ours, theirs = jax.tree.map(np.asarray, (package, reference))
        equal = (ours.tokens == theirs.tokens).all(-1)
        if equal.mean() < 0.9 or not lengths(ours.lengths) or not lengths(theirs.lengths):
            raise ValueError(f"{equal.mean():.0%} of responses are equal; lengths {ours.lengths}.")
        return float(abs(ours.log_probs - theirs.log_probs)[equal].max())

    return Pair(package, reference, difference)


def nucleus(config: gemma.GemmaConfig, prompts: int, n: int, tokens: int) -> Pair:
    """Returns the workload of sampling with top-p, whose reference is sampling without it."""
    inputs = make_inputs(config, prompts, 16)
    arguments: Any = (*inputs[1:], jax.random.key(SEED), 1.0)
    sizes: Any = {"n": n, "max_response": tokens, "stop_tokens": ()}
    sample = functools.partial(sampling.sample, inputs.model, **sizes)
    package, reference = jax.jit(functools.partial(sample, top_p=0.95)), jax.jit(sample)

    def difference(package: sampling.Rollout, reference: sampling.Rollout) -> float:
        """Returns the largest difference of log-probs of tokens that follow equal ones.

        Tokens are equal up to the first one that top-p leaves out.
        """
        equal = np.cumprod(package.tokens == reference.tokens, -1).astype(bool)
        if equal.all() or not equal[:, :, 0].mean() > 0.5:
            raise ValueError(f"Of the first tokens {equal[:, :, 0].mean():.0%} are equal.")
        return float(abs(package.log_probs - reference.log_probs)[equal].max())

    return Pair(lambda: package(*arguments), lambda: reference(*arguments), difference)


def follow_chain(inputs: Inputs, steps: int, fork: float) -> Inputs:
    """Returns parameters and prompts by which responses follow a Markov chain to a stop token.

    The layers run as ever, but the scales of the norms behind them make their outputs zero. The
    logits are then those of the embeddings E alone, soft-capped multiples of E diag(s) E^T for the
    scales s of the last norm. This can be any symmetric matrix: E holds its eigenvectors, and s the
    signs of its eigenvalues. Its entries rise along the chain, so that each token is followed by
    the next one and not by the one before.

    Args:
      inputs: parameters whose embed_dim is at least num_embed, and prompts.
      steps: the number of tokens of a response, which include the stop token.
      fork: the affinity of prompts to the token FOREVER, where that to the chain is 1.
    """
    count, embed = inputs.model.config.num_embed, inputs.model.config.embed_dim
    links = [PROMPT, *range(CHAIN, CHAIN + steps - 1), STOP]
    affinity = 0.1 * np.eye(count)
    for token, following, strength in zip(links, links[1:], np.linspace(1, 2, steps), strict=False):
        affinity[token, following] = affinity[following, token] = strength
    affinity[PROMPT, FOREVER] = affinity[FOREVER, PROMPT] = fork
    affinity[FOREVER, FOREVER] = 3.0
    values, vectors = np.linalg.eigh(affinity)
    room = [(0, 0), (0, embed - count)]
    table = jnp.pad(jnp.float32(vectors * np.sqrt(abs(values))), room)
    layers = dict(inputs.params["layers"])
    for name in ("post_attention_norm", "post_ffw_norm"):
        layers[name] = jax.tree.map(lambda x: jnp.full_like(x, -1.0), layers[name])
    params = {
        "embedder": {"input_embedding": table},
        "final_norm": {"scale": jnp.pad(jnp.float32(np.sign(values) - 1), room[1])},
        "layers": layers,
    }
    return inputs._replace(params=params, prompts=inputs.prompts.at[:, -1].set(PROMPT))


def early_stop(
    config: gemma.GemmaConfig, prompts: int, n: int, tokens: int, steps: int, *, stragglers: int
) -> Pair:
    """Returns the workload of responses of which all but `stragglers` (0 or 1) stop at `steps`."""
    inputs = follow_chain(make_inputs(config, prompts, 16), steps, 0.997 if stragglers else 0.0)
    sizes: Any = {"n": n, "max_response": 1, "stop_tokens": (STOP,)}
    first = jax.jit(functools.partial(sampling.sample, inputs.model, **sizes))

    def count(seed: int) -> int:
        first_tokens = first(*inputs[1:], jax.random.key(seed), COLD).tokens
        return int((first_tokens == FOREVER).sum())

    def right(lengths: np.ndarray) -> bool:
        counts = [(lengths == length).sum() for length in (tokens, steps)]
        return counts == [stragglers, lengths.size - stragglers]

    # The first seed by which the wanted number of responses goes on.
    seed = next(seed for seed in range(SEED, SEED + 1000) if count(seed) == stragglers)
    return rollout(
        inputs, right, n=n, tokens=tokens, temperature=COLD, stop_tokens=(STOP,), seed=seed
    )


def workloads(quick: bool) -> dict[str, Callable[[], Pair]]:
    """Returns functions that set workloads up, by name."""
    small, large, wide = (QUICK,) * 3 if quick else (SMALL, LARGE, WIDE)
    p, n = (2, 4) if quick else (8, 16)
    at = (lambda count: count // 8) if quick else (lambda count: count)

    def decoding(config: gemma.GemmaConfig, prompts: int, n: int, tokens: int) -> Pair:
        inputs = make_inputs(config, prompts, 16)
        return rollout(inputs, lambda lengths: (lengths == tokens).all(), n=n, tokens=tokens)

    def stop(stragglers: int) -> Pair:
        return early_stop(small, p, n, at(512), at(32), stragglers=stragglers)

    return {
        "gradient-256": lambda: gradient(small, p, n, at(256), at(32)),
        "gradient-1024": lambda: gradient(small, p, n, at(1024), at(32)),
        "decoding": lambda: decoding(small, 4, n, at(256)),
        "decoding-33M": lambda: decoding(large, 4, 4, at(64)),
        "early-stop": lambda: stop(0),
        "straggler": lambda: stop(1),
        "top-p": lambda: nucleus(wide, 4, n, at(32)),
    }


def measure(pair: Pair, repeats: int) -> dict[str, Any]:
    """Returns the seconds of both sides, which take turns, and the difference of their results."""
    sides = {"package": pair.package, "reference": pair.reference}
    if pair.products:
        sides["products"] = pair.products
    times: dict[str, list[float]] = {side: [] for side in sides}
    results: dict[str, Any] = {}
    for _ in range(repeats + 1):
        for side, call in sides.items():
            started = time.perf_counter()
            results[side] = jax.block_until_ready(call())
            times[side].append(time.perf_counter() - started)
    figures: dict[str, Any] = {
        "difference": pair.difference(results["package"], results["reference"])
    }
    for side, (first, *others) in times.items():
        low, median, high = np.quantile(others, (0.25, 0.5, 0.75))
        figures[side] = {"first_s": first, "median_s": median, "spread_s": (high - low) / 2}
    figures["ratio"] = figures["package"]["median_s"] / figures["reference"]["median_s"]
    return figures


def show(console: rich.console.Console, record: dict[str, Any]) -> None:
    """Prints the figures of one run as a table."""
    columns = ("package, ms", "reference, ms", "ratio", "products, ms", "first, s", "difference")
    table = rich.table.Table("workload", *columns)
    for name, figures in record["figures"].items():
        sides = [figures[side] for side in ("package", "reference", "products") if side in figures]
        times = [f"{1e3 * side['median_s']:,.1f} ± {1e3 * side['spread_s']:,.1f}" for side in sides]
        package, reference, products = (*times, "")[:3]
        first = " / ".join(f"{side['first_s']:.1f}" for side in sides[:2])
        ratio, difference = f"{figures['ratio']:.2f}", f"{figures['difference']:.0e}"
        table.add_row(name, package, reference, ratio, products, first, difference)
    console.print(table)
    shapes = ", quick shapes" if record["quick"] else ""
    about = f"seed {record['seed']}, medians of {record['repeats']} calls{shapes}"
    console.print(f"{history.about(record)}, {about}", highlight=False)


def show_history(console: rich.console.Console, records: list[dict[str, Any]]) -> None:
    """Prints the package's milliseconds and ratios to the reference, a record in each row."""
    names = list(workloads(quick=True))
    table = rich.table.Table("commit", *names)
    for record in records:
        row = [f"{record['started'][:10]} {(record['commit'] or '')[:9]}"]
        for name in names:
            figures = record["figures"].get(name)
            if figures:
                milliseconds = 1e3 * figures["package"]["median_s"]
                row.append(f"{milliseconds:,.0f} ({figures['ratio']:.2f}x)")
            else:
                row.append("")
        table.add_row(*row)
    console.print(table)
    for machine in sorted({record["machine"] for record in records}):
        console.print(machine, highlight=False)


def main(argv: Sequence[str]) -> None:
    del argv
    logging.set_verbosity(logging.WARNING)
    console = rich.console.Console(width=120)
    if _SHOW.value:
        show_history(console, [r for r in history.read(NAME) if not r["quick"]])
        return
    chosen = workloads(_QUICK.value)
    chosen = {name: make for name, make in chosen.items() if name.startswith(_ONLY.value)}
    if not chosen:
        names = ", ".join(workloads(quick=True))
        raise app.UsageError(f"--only={_ONLY.value} names no workload; expected one of {names}.")
    figures = {name: measure(make(), _REPEATS.value) for name, make in chosen.items()}
    options = {"seed": SEED, "quick": _QUICK.value, "repeats": _REPEATS.value}
    record = history.describe(NAME, figures, **options)
    show(console, record)
    if _RECORD.value:
        history.append(record)


if __name__ == "__main__":
    app.run(main)
