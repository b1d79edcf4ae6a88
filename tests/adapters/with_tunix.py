"""Trains a tiny random Gemma with the GRPOLearner of Tunix and an adapter, see `tests.adapters`."""

import json

from tests.adapters import checks

PROMPTS, N, TOKENS, K, STEPS = 2, 4, 6, 2, 2


class Characters:
    """A tokenizer with one token for each character, in the form that Tunix expects."""

    def encode(self, text, **_):
        return [ord(c) % 56 + 8 for c in text]

    def decode(self, ids, **_):
        return "".join(chr(max(0, int(i) - 8) + 48) for i in ids)

    def bos_id(self):
        return 2

    def eos_id(self):
        return 1

    def pad_id(self):
        return 0


def main():
    import jax
    import numpy as np
    import optax
    from flax import nnx
    from tunix.models.gemma import model as gemma
    from tunix.rl import rl_cluster
    from tunix.rl.grpo import grpo_learner
    from tunix.rl.rollout import base_rollout

    from pkpo_jax.adapters import tunix as adapter

    adapter.register("pkpo", k=K)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    config = gemma.ModelConfig(
        num_layers=2,
        num_embed=64,
        embed_dim=32,
        hidden_dim=64,
        num_heads=4,
        head_dim=8,
        num_kv_heads=2,
        final_logit_softcap=30.0,
        use_post_attn_norm=True,
        use_post_ffw_norm=True,
        attention_types=(gemma.AttentionType.LOCAL_SLIDING, gemma.AttentionType.GLOBAL),
        attn_logits_soft_cap=50.0,
        sliding_window_size=16,
    )
    with mesh:
        model = gemma.Gemma(config, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
    cluster = rl_cluster.RLCluster(
        actor=model,
        reference=None,
        tokenizer=Characters(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh=dict.fromkeys(roles, mesh),
            rollout_engine="vanilla",
            offload_to_cpu=False,
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optax.adam(1e-2),
                eval_every_n_steps=10**6,
                max_steps=STEPS,
                mini_batch_size=PROMPTS,
                train_micro_batch_size=PROMPTS,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=TOKENS,
                max_prompt_length=8,
                kv_cache_size=32,
                temperature=1.0,
                top_p=1.0,
                top_k=None,
            ),
        ),
    )
    rewarded, used = [], []

    def reward(prompts, completions, **_):
        rewarded.append([sum(c < "L" for c in text) / 4 for text in completions])
        return rewarded[-1]

    class Recorded(grpo_learner.GRPOLearner):
        def _generate_and_compute_advantage(self, *args, **kwargs):
            example = super()._generate_and_compute_advantage(*args, **kwargs)
            used.append(np.asarray(example.advantages))
            return example

    options = grpo_learner.GRPOConfig(
        num_generations=N,
        num_iterations=1,
        beta=0.0,
        advantage_estimator="pkpo",
        loss_agg_mode="seq-mean-token-sum",
    )
    learner = Recorded(cluster, options, reward)
    texts = np.array([f"prompt{i}" for i in range(STEPS * PROMPTS)]).reshape(STEPS, PROMPTS)
    learner.train([{"prompts": part} for part in texts])

    assert len(used) == len(rewarded) == STEPS
    for advantages, rewards in zip(used, rewarded, strict=True):
        groups = [rewards[at : at + N] for at in range(0, PROMPTS * N, N)]
        exact = [a for group in groups for a in checks.advantages(group, K)]
        assert advantages.shape == (PROMPTS * N,)
        np.testing.assert_allclose(advantages, exact, atol=1e-6)
    assert any(a.any() for a in used)
    # The cluster trains a copy.
    after = nnx.to_pure_dict(nnx.state(cluster.actor_trainer.model, nnx.Param))
    changes = jax.tree.map(lambda x, y: float(np.abs(np.array(y) - x).max()), before, after)
    moved = max(jax.tree.leaves(changes))
    assert moved > 1e-3, moved
    refused = []
    adapter.register("too_large", k=N + 1)
    from tunix.rl import function_registry

    try:
        function_registry.get_advantage_estimator("too_large")(
            rewards=np.zeros(PROMPTS * N), num_generations=N
        )
    except ValueError as e:
        refused.append(str(e))
    assert refused == ["k=5; expected 1 <= k <= 4 for groups of n=4 samples."], refused
    print(
        json.dumps(
            {
                "trained": f"{STEPS} steps of GRPOLearner, {PROMPTS} prompts x {N} responses each, "
                f"k = {K}",
                "advantages checked": STEPS * PROMPTS * N,
                "not 0": int(sum((a != 0).sum() for a in used)),
                "largest change of a parameter": round(moved, 5),
                "refused": refused,
                "versions": checks.versions("google-tunix", "jax", "flax", "numpy"),
            }
        )
    )


if __name__ == "__main__":
    main()
