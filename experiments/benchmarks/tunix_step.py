"""Prints the times of whole GRPO steps of Tunix as a JSON line; `whole_step` runs it.

PYTHON experiments/benchmarks/tunix_step.py STEPS PROMPT_TOKENS

It runs in an environment with google-tunix 0.1.7, which need not have the package.
"""

from __future__ import annotations

import json
import sys
import time

import jax
import numpy as np
import optax
from flax import nnx
from tunix.models.gemma import model as gemma
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

# These are the network and the batch of `package_step`.
PROMPTS, RESPONSES, TOKENS = 8, 16, 32
CONFIG = gemma.ModelConfig(
    num_layers=4,
    num_embed=264,
    embed_dim=128,
    hidden_dim=512,
    num_heads=4,
    head_dim=32,
    num_kv_heads=2,
    final_logit_softcap=30.0,
    use_post_attn_norm=True,
    use_post_ffw_norm=True,
    attention_types=(gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL) * 2,
    attn_logits_soft_cap=50.0,
    sliding_window_size=16,
)


class Characters:
    """A tokenizer with one token for each character, in the form that Tunix expects."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [ord(c) % 240 + 8 for c in text]

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(chr(max(0, int(i) - 8)) for i in ids)

    def bos_id(self) -> int:
        return 2

    def eos_id(self) -> int:
        return 1

    def pad_id(self) -> int:
        return 0


def main(steps: int, tokens: int) -> None:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    with mesh:
        model = gemma.Gemma(CONFIG, rngs=nnx.Rngs(0))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    training = rl_cluster.RLTrainingConfig(
        actor_optimizer=optax.adam(1e-4),
        eval_every_n_steps=10**6,
        max_steps=steps,
        mini_batch_size=PROMPTS,
        train_micro_batch_size=PROMPTS,
    )
    sampling = base_rollout.RolloutConfig(
        max_tokens_to_generate=TOKENS,
        max_prompt_length=tokens,
        kv_cache_size=tokens + TOKENS + 16,
        temperature=1.0,
        top_p=1.0,
        top_k=None,
    )
    cluster = rl_cluster.RLCluster(
        actor=model,
        reference=None,
        tokenizer=Characters(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=training,
            rollout_config=sampling,
        ),
    )
    rewarded = []

    def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        rewarded.append(time.perf_counter() - begun)
        return [float(text.count("e")) for text in completions]

    options = grpo_learner.GRPOConfig(
        num_generations=RESPONSES, num_iterations=1, beta=0.0, epsilon=0.2
    )
    learner = grpo_learner.GRPOLearner(cluster, options, reward)
    texts = [(f"question {i:07d} " * 80)[: tokens - 1] for i in range(steps * PROMPTS)]
    begun = time.perf_counter()
    learner.train([{"prompts": part} for part in np.array(texts).reshape(steps, PROMPTS)])
    print(json.dumps({"parameters": count, "rewarded": rewarded}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
