"""Tests of chains of revisions, and of the runs that the comparison is made of."""

import contextlib
import json
import types

import numpy as np
import pytest

from experiments import revision_chains, toy_revision
from experiments.study import runs
from pkpo_jax.tasks import Revision
from pkpo_jax.training import checks, saved_run
from pkpo_jax.training.trainer import Trainer

TASK = Revision(options="digits=1, train_problems=40, test_problems=10")


class Scripted:
    """Stands for a trainer whose policy answers from a script, by prompt."""

    def __init__(self, script):
        self.task, self.script, self.turns = TASK, script, []

    def evaluate(self, params, turn):
        self.turns.append((turn, [problem["prompt"] for problem in self.held_out]))
        texts = [self.script[problem["prompt"]].pop(0) for problem in self.held_out]
        grades = [TASK.grade(p, text) for p, text in zip(self.held_out, texts, strict=True)]
        rewards = [g if isinstance(g, float) else g.reward for g in grades]
        responses = [[text] for text in texts]
        return types.SimpleNamespace(responses=responses, rewards=np.array(rewards)[:, None])


def test_a_chain_revises_the_last_answer_until_one_is_right(tmp_path):
    a, b, c = (p["problem"] for p in TASK.problems("test")[:3])
    prompts = [p["prompt"] for p in (a, b, c)]
    script = {
        prompts[0]: [a["answer"]],
        prompts[1]: ["77"],
        # A text that is no number leaves the prompt as it is, and the last revision fails too.
        prompts[2]: ["no", "88"],
        f"{prompts[1]}77!": [b["answer"]],
        f"{prompts[2]}88!": ["99"],
        f"{prompts[0]}{a['answer']}?": ["y"],
        f"{prompts[1]}77?": ["n"],
        f"{prompts[1]}{b['answer']}?": ["n"],
        f"{prompts[2]}88?": ["y"],
        f"{prompts[2]}99?": [""],
    }
    trainer = Scripted(script)
    lines = revision_chains.chains(trainer, None, [a, b, c], revisions=2)
    assert [line["responses"] for line in lines] == [
        [a["answer"]],
        ["77", b["answer"]],
        ["no", "88", "99"],
    ]
    assert [line["rewards"] for line in lines] == [[1.0], [0.0, 1.0], [0.0, 0.0, 0.0]]
    assert [line["verified"] for line in lines] == [[1.0], [1.0, 0.0], [None, 0.0, 0.0]]
    # Every turn has random numbers of its own.
    assert [turn for turn, _ in trainer.turns] == [0, 1, 2, 3]
    # Training reads the file, and takes the chain that fails first and ends right.
    path = tmp_path / "chains.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = Revision(options=TASK.options, attempts=str(path), evaluate_on="revision")
    assert [p["prompt"] for p in task.problems("test")] == [f"{prompts[1]}77!"]


def test_the_measures_of_chains():
    lines = [
        {"rewards": [1.0], "verified": [1.0]},
        {"rewards": [0.0, 0.0, 1.0], "verified": [1.0, None, 0.0]},
        {"rewards": [0.0] * 9, "verified": [0.0] + [None] * 8},
    ]
    found = toy_revision.of_chains(lines)
    assert [found[name] for name in ("first", "after 1", "after 2", "after 8")] == pytest.approx(
        [1 / 3, 1 / 3, 2 / 3, 2 / 3]
    )
    assert (found["on right"], found["on wrong"]) == (0.5, 0.5)


@pytest.mark.parametrize("task", toy_revision.TASKS)
def test_every_run_is_one_that_the_trainer_accepts(task, tmp_path):
    one = toy_revision.Comparison(tmp_path, task, seed=0, steps=20)
    config = runs._config(toy_revision.CONFIG)
    checks.validate(saved_run.override(config, one.before.changes), 1)
    for run in one.trained.values():
        # No policy before RL exists yet.
        changes = {**run.changes, "model.checkpoint": ""}
        checks.validate(saved_run.override(config, changes), 1)
    # A policy reads every prompt, also those about its longest responses.
    fewer = config.task.options.replace("3000", "99") if task == "sums" else "train_problems=99"
    before = saved_run.override(config, {**one.before.changes, "task.options": fewer})
    with contextlib.closing(Trainer(before)) as trainer:
        longest = max(len(p["problem"]["prompt"]) for p in trainer.problems)
    assert longest + before.rollout.max_response + 2 == before.rollout.max_prompt
    assert one.trained["problems"].changes["task.kinds"] == ("problem",)
    assert all(job.command()[2] == "experiments.revision_chains" for job in one.measured.values())
