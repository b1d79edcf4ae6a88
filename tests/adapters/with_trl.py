"""Trains a tiny random model with TRL's GRPOTrainer and an adapter; see `tests.adapters`.

It prints what it checked, and fails if an advantage that the loss used is not that of enumeration.
"""

import json
import sys
import tempfile

from tests.adapters import checks

PROMPTS, N, TOKENS, K = 2, 4, 6, {0: 4, 1: 2}


def main():
    import datasets
    import numpy as np
    import torch
    import trl

    from pkpo_jax import schedules
    from pkpo_jax.adapters import numpy as on_numpy
    from pkpo_jax.adapters import trl as adapter

    torch.manual_seed(0)
    model = checks.tiny_model(32)
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    scored, used = [], []

    def first_half(completion_ids, **_):
        rewards = [sum(token < 16 for token in ids) / 4 for ids in completion_ids]
        scored.append([tuple(ids) for ids in completion_ids])
        return rewards

    def long_words(completion_ids, **_):
        # A response that starts with token 3 cannot be scored by this function.
        return [None if ids[0] == 3 else float(max(ids) > 28) for ids in completion_ids]

    def total(ids):
        return sum(token < 16 for token in ids) / 4 + 0.5 * (ids[0] != 3 and max(ids) > 28)

    class Recorded(adapter.grpo_trainer(k=schedules.step(K))):
        def _compute_loss(self, model, inputs):
            mask = inputs["completion_mask"].bool()
            ids = [
                tuple(x[m].tolist()) for x, m in zip(inputs["completion_ids"], mask, strict=True)
            ]
            loss = super()._compute_loss(model, inputs)
            used.append((self.state.global_step, ids, inputs["advantages"].tolist(), loss.item()))
            return loss

    with tempfile.TemporaryDirectory() as directory:
        arguments = trl.GRPOConfig(
            output_dir=directory,
            use_cpu=True,
            max_steps=2,
            per_device_train_batch_size=PROMPTS * N,
            num_generations=N,
            max_completion_length=TOKENS,
            learning_rate=1e-2,
            loss_type="dr_grpo",
            reward_weights=[1.0, 0.5],
            report_to=[],
            logging_steps=1,
            save_strategy="no",
            seed=0,
        )
        trainer = Recorded(
            model=model,
            processing_class=checks.word_tokenizer(32),
            reward_funcs=[first_half, long_words],
            args=arguments,
            train_dataset=datasets.Dataset.from_dict(
                {"prompt": [" ".join(f"w{i + j}" for j in range(3)) for i in range(4, 12)]}
            ),
        )
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]

    assert [step for step, *_ in used] == [0, 1]
    nonzero = 0
    for (step, ids, advantages, loss), responses in zip(used, scored, strict=True):
        # At ratios of 1 this is the loss, with TOKENS as the length that dr_grpo divides by.
        by_hand = -sum(a * len(i) for a, i in zip(advantages, ids, strict=True))
        assert abs(loss - by_hand / (PROMPTS * N * TOKENS)) < 1e-5, (loss, by_hand)
        groups = [responses[at : at + N] for at in range(0, len(responses), N)]
        expected = [
            (response, weight)
            for group in groups
            for response, weight in zip(
                group, checks.advantages([total(r) for r in group], K[step]), strict=True
            )
        ]
        checks.same(sorted(zip(ids, advantages, strict=True)), sorted(expected))
        nonzero += sum(a != 0 for a in advantages)
    moved = max(
        float((x.detach() - before[name]).abs().max()) for name, x in model.named_parameters()
    )
    assert nonzero and moved > 1e-4
    try:
        adapter.grpo_trainer(k=schedules.step({0: 2, 1: N + 1}))(
            model=model,
            processing_class=checks.word_tokenizer(32),
            reward_funcs=[first_half, long_words],
            args=arguments,
            train_dataset=trainer.train_dataset,
        )
    except ValueError as e:
        refused = str(e)
    assert refused == "k=5; expected 1 <= k <= 4 for groups of n=4 samples.", refused
    # The NumPy path takes tensors.
    tensors = torch.tensor([0.0, 3.0, 1.0, 9.0]), torch.tensor(2)
    kept = torch.tensor([True, True, True, False])
    weights = on_numpy.pkpo_weights(*tensors, where=kept)
    assert np.allclose(weights[:3], np.array(checks.advantages([0, 3, 1], 2)) / 3), weights
    assert "jax" not in sys.modules
    print(
        json.dumps(
            {
                "trained": "2 steps of GRPOTrainer, 2 prompts x 4 responses each, k = 4 then 2",
                "advantages checked": sum(len(a) for _, _, a, _ in used),
                "not 0": nonzero,
                "losses": losses,
                "largest change of a parameter": round(moved, 5),
                "refused": refused,
                "versions": checks.versions("trl", "transformers", "torch", "numpy"),
            }
        )
    )


if __name__ == "__main__":
    main()
