"""Computes advantages of episodes as rLLM's trainers do, with an adapter, see `tests.adapters`.

rLLM trains on backends that a CPU cannot stand for: the Tinker and Fireworks services, or verl on
GPUs. This runs what comes before them in each step: episodes are grouped, and every step of their
trajectories gets its advantage.
"""

import importlib.metadata
import json
import random
import sys

from tests.adapters import checks

PROMPTS, N, K = 3, 4, 2


def main():
    import omegaconf
    from rllm import types
    from rllm.trainer import algorithms
    from rllm.trainer.algorithms import advantage

    from pkpo_jax.adapters import rllm as adapter

    adapter.register("pkpo", k=K)
    adapter.register("other", "rloo_advantages")
    source = random.Random(0)
    # Rollouts of the problems arrive in any order. A solver takes two steps, a judge takes one.
    ids = [(problem, rollout) for problem in range(PROMPTS) for rollout in range(N)]
    source.shuffle(ids)
    step = lambda: types.Step(prompt_ids=[1, 2], response_ids=[3, 4], logprobs=[-1.0, -1.0])  # noqa: E731
    episodes = [
        types.Episode(
            id=f"problem{problem}:{rollout}",
            trajectories=[
                types.Trajectory(name=name, reward=source.randint(0, 4) / 4, steps=steps)
                for name, steps in (("solver", [step(), step()]), ("judge", [step()]))
            ],
        )
        for problem, rollout in ids
    ]
    groups, _ = algorithms.transform_episodes_to_trajectory_groups(
        episodes, algorithms.TransformConfig()
    )
    given = omegaconf.OmegaConf.create({"adv_estimator": "other"})
    config = algorithms.AlgorithmConfig.from_config(given, estimator_map={"solver": "pkpo"})
    metrics = advantage.collect_reward_and_advantage_from_trajectory_groups(groups, config)

    assert len(groups) == 2 * PROMPTS and len(metrics) > 4
    nonzero = 0
    for group in groups:
        rewards = [trajectory.reward for trajectory in group.trajectories]
        exact = checks.advantages(rewards, K if group.group_role == "solver" else 1)
        for trajectory, expected in zip(group.trajectories, exact, strict=True):
            found = [s.advantage for s in trajectory.steps]
            assert all(abs(a - expected) < 1e-6 for a in found), (group.group_id, found, expected)
            nonzero += expected != 0
    assert nonzero
    # rLLM takes any other name in the config for "other".
    named = omegaconf.OmegaConf.create({"adv_estimator": "pkpo"})
    assert algorithms.AlgorithmConfig.from_config(named).estimator == "other"
    refused = []
    adapter.register("too_large", k=N + 1)
    try:
        advantage.get_rllm_adv_estimator("too_large")(rewards=[[0.0] * N], algorithm_config=config)
    except ValueError as e:
        refused.append(str(e))
    assert refused == ["k=5; expected 1 <= k <= 4 for groups of n=4 samples."], refused
    assert "jax" not in sys.modules
    print(
        json.dumps(
            {
                "ran": "episodes to groups, collect_reward_and_advantage_from_trajectory_groups: "
                f"{PROMPTS} problems x {N} rollouts, pkpo with k = {K} for one role, rloo for one",
                "did not run": "the backends that train: Tinker, Fireworks, verl on GPUs",
                "advantages checked": 2 * PROMPTS * N,
                "not 0": nonzero,
                "refused": refused,
                "versions": {**checks.versions("rllm", "numpy"), "commit": commit()},
            }
        )
    )


def commit():
    """Returns the commit that pip installed rLLM from, or its directory."""
    text = importlib.metadata.distribution("rllm").read_text("direct_url.json")
    origin = json.loads(text)
    return origin.get("vcs_info", {}).get("commit_id", "from a directory")


if __name__ == "__main__":
    main()
