"""Prints the times of whole RL steps of the package as a JSON line; `whole_step` runs it.

python -m experiments.benchmarks.package_step STEPS PROMPT_TOKENS
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
from absl import logging

from pkpo_jax import host_memory
from pkpo_jax.policy import gemma
from pkpo_jax.tasks import Problem, Task
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.trainer import Trainer

PROMPTS, RESPONSES, TOKENS = 8, 16, 32
CONFIG = gemma.GemmaConfig(
    num_layers=4,
    embed_dim=128,
    hidden_dim=512,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    query_pre_attn_scalar=32**-0.5,
    num_embed=264,
    vocab_size=264,
    sliding_window_size=16,
)


@dataclasses.dataclass(frozen=True)
class Letters(Task):
    """Rewards a response for each letter e in it, as `tunix_step` does.

    Attributes:
      tokens: the number of tokens of a prompt, one of which is BOS.
    """

    tokens: int = 16

    # With PAD, EOS and BOS, the policy knows 264 tokens.
    alphabet = "".join(map(chr, range(32, 32 + 261)))

    def problems(self, split: str) -> Sequence[Problem]:
        texts = ((f"question {i:07d} " * 80)[: self.tokens - 1] for i in range(4 * PROMPTS))
        return [{"id": i, "prompt": text} for i, text in enumerate(texts)]

    def grade(self, problem: Problem, response: str) -> float:
        return float(response.count("e"))


def main(steps: int, tokens: int) -> None:
    logging.set_verbosity(logging.WARNING)
    host_memory.keep_freed()  # The command pkpo-jax does this too.
    gemma.SIZES["tiny"] = CONFIG
    config = config_lib.default("experiments.benchmarks.package_step:Letters")
    config.task.tokens = tokens
    config.rollout.max_prompt, config.rollout.max_response = tokens, TOKENS
    config.rollout.n, config.train.prompts, config.train.steps = RESPONSES, PROMPTS, steps
    trainer = Trainer(config)
    with tempfile.TemporaryDirectory() as directory:
        state = trainer.start(pathlib.Path(directory))
    count = sum(x.size for x in jax.tree.leaves(state.params))
    begun, rewarded = time.perf_counter(), []
    for step in range(steps):
        started = time.perf_counter()
        state, metrics, _ = trainer.step(state, step)
        rewarded.append(started + metrics["time/sample_s"] - begun)
    trainer.close()
    print(json.dumps({"parameters": count, "rewarded": rewarded}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
