"""Takes two policy-gradient steps with verl's own functions and an adapter.

See `tests.adapters`. verl's trainer needs Ray and inference servers on GPUs. So this samples with
`transformers` and calls what that trainer calls on one batch: `compute_advantage` on a `DataProto`,
with the config's `adv_estimator`, and the actor's policy loss.
"""

import json
import os
import pathlib
import sys
import tempfile
import uuid

from tests.adapters import checks

PROMPTS, N, TOKENS, K = 2, 4, 6, 3
MODULE = """
from pkpo_jax.adapters import verl

verl.register("pkpo", k={k})
"""


def main():
    # verl imports the modules that this variable names, in each of its processes.
    os.environ["VERL_USE_EXTERNAL_MODULES"] = "my_estimators"
    directory = tempfile.TemporaryDirectory()
    pathlib.Path(directory.name, "my_estimators.py").write_text(MODULE.format(k=K))
    sys.path.insert(0, directory.name)
    import numpy as np
    import torch
    import verl
    from verl.trainer.config import AlgoConfig
    from verl.trainer.ppo import core_algos, ray_trainer
    from verl.workers.config import ActorConfig

    from pkpo_jax.adapters import verl as adapter

    torch.manual_seed(0)
    model = checks.tiny_model(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    actor = ActorConfig(
        strategy="fsdp",
        rollout_n=N,
        ppo_micro_batch_size_per_gpu=1,
        loss_agg_mode="seq-mean-token-sum",
    )
    algorithm = AlgoConfig(adv_estimator="pkpo")
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    losses, nonzero = [], 0
    for _ in range(2):
        ids, mask, log_probs = sample(model)
        rewards = [float((row[kept] < 16).sum()) / 4 for row, kept in zip(ids, mask, strict=True)]
        scores = torch.zeros(mask.shape)
        scores[torch.arange(len(ids)), mask.sum(-1) - 1] = torch.tensor(rewards)
        # Rows of the groups alternate, as they do after verl balances a batch over its workers.
        uids = [str(uuid.uuid4()) for _ in range(PROMPTS)]
        order = torch.arange(PROMPTS * N).view(PROMPTS, N).T.ravel()
        data = verl.DataProto.from_dict(
            tensors={
                "responses": ids[order],
                "response_mask": mask[order].long(),
                "token_level_rewards": scores[order],
            },
            non_tensors={"uid": np.array([uids[i // N] for i in order.tolist()], dtype=object)},
        )
        data = ray_trainer.compute_advantage(
            data, adv_estimator=algorithm.adv_estimator, config=algorithm
        )
        # Back in the order of the samples, each response has one advantage on all of its tokens.
        found = data.batch["advantages"][torch.argsort(order)]
        for at in range(0, PROMPTS * N, N):
            exact = torch.tensor(checks.advantages(rewards[at : at + N], K))
            expected = exact[:, None] * mask[at : at + N]
            assert (found[at : at + N] - expected).abs().max() < 1e-6, (found, expected)
            nonzero += int((exact != 0).sum())
        loss, _ = core_algos.get_policy_loss_fn("vanilla")(
            old_log_prob=log_probs.detach(),
            log_prob=log_probs,
            advantages=found,
            response_mask=mask,
            loss_agg_mode=actor.loss_agg_mode,
            config=actor,
        )
        assert abs(loss.item() + float(found.sum()) / (PROMPTS * N)) < 1e-5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(round(loss.item(), 5))
    moved = max(
        float((x.detach() - before[name]).abs().max()) for name, x in model.named_parameters()
    )
    assert nonzero and moved > 1e-4

    refused = []
    adapter.register("too_large", k=N + 1)
    try:
        ray_trainer.compute_advantage(data, adv_estimator="too_large", config=algorithm)
    except ValueError as e:
        refused.append(str(e))
    assert refused and refused[0].startswith("k=5; expected 1 <= k <= 4"), refused
    try:
        adapter.register("pkpo_scheduled", k=lambda step: 1)
    except ValueError as e:
        refused.append(str(e))
    # A rollout has failed, and verl has filled the batch up with rows of one uid and no tokens.
    data.non_tensor_batch["uid"] = np.array([*"aaaabb", "pad", "pad"], dtype=object)
    data.batch["response_mask"][-2:] = 0
    data = ray_trainer.compute_advantage(data, adv_estimator="pkpo", config=algorithm)
    scores = data.batch["token_level_rewards"].sum(-1).tolist()
    exact = [*checks.advantages(scores[:4], K), *checks.advantages(scores[4:6], min(K, 2)), 0, 0]
    expected = torch.tensor(exact)[:, None] * data.batch["response_mask"]
    assert (data.batch["advantages"] - expected).abs().max() < 1e-6
    assert "jax" not in sys.modules
    print(
        json.dumps(
            {
                "ran": "verl's compute_advantage on DataProto and its vanilla policy loss, 2 AdamW "
                f"steps, {PROMPTS} prompts x {N} responses, k = {K}",
                "did not run": "main_ppo: Ray, FSDP workers and inference servers",
                "advantages checked": 3 * PROMPTS * N,
                "not 0": nonzero,
                "losses": losses,
                "largest change of a parameter": round(moved, 5),
                "refused": refused,
                "versions": checks.versions("verl", "torch", "transformers", "ray", "numpy"),
            }
        )
    )


def sample(model):
    """Returns sampled tokens [B, T], their mask up to the end mark, and their log-probs."""
    import torch

    prompts = torch.arange(3, 3 + 4 * PROMPTS).view(PROMPTS, 4).repeat_interleave(N, 0)
    with torch.no_grad():
        whole = model.generate(prompts, do_sample=True, max_new_tokens=TOKENS, top_k=0)
    ids = whole[:, prompts.shape[1] :]
    ended = (ids == model.config.eos_token_id).long().cumsum(-1)
    mask = (ended - (ids == model.config.eos_token_id).long()) == 0
    logits = model(whole).logits[:, prompts.shape[1] - 1 : -1]
    log_probs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return ids, mask, log_probs


if __name__ == "__main__":
    main()
