"""Samples chains of revisions from a policy that was trained on the task revision.

python -m experiments.revision_chains --workdir=RUN --output=FILE.jsonl [--step=0] [--split=train]
    [--problems=N] [--revisions=8]

The policy answers each problem. As long as an answer is wrong, it is asked to revise it, at most
--revisions times (REVES, arXiv 2606.18910). Then it says of each answer whether it is right. FILE
holds a line for each problem, with its "id" and "prompt", the "responses" of the chain, their
"rewards", and for each response whether the policy's verdict on it is right, "verified": null for a
response without an answer. The key task.attempts takes this file.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from pkpo_jax import command_line
from pkpo_jax.policy import checkpoints
from pkpo_jax.tasks import Problem, Revision
from pkpo_jax.training import evaluation, files, saved_run
from pkpo_jax.training.config import ConfigError
from pkpo_jax.training.trainer import Trainer


def sample(
    workdir: pathlib.Path, step: int, *, split: str, count: int, revisions: int
) -> list[dict[str, Any]]:
    """Samples a chain for each of `count` problems of a split, or of all if there are fewer.

    Args:
      workdir: the directory of a run with the task revision.
      step: the step of a policy that the run keeps; 0 is the one before RL.
      split: "train" or "test".
      count: how many problems, spread evenly over the split.
      revisions: how often a wrong answer is revised at most.

    Returns:
      The lines of the file, see the module.

    Raises:
      ConfigError: the run has another task or keeps no such policy, or a prompt is too long.
    """
    config = saved_run.read_config(workdir)
    if config.task.name != "revision":
        raise ConfigError(
            f"--workdir={workdir} has task.name={config.task.name!r}; expected a run with "
            "task.name='revision', whose policy reads prompts to revise."
        )
    _, config.model.checkpoint = saved_run.policy(workdir, config, str(step))
    config.task.kinds, config.task.evaluate_on = ("problem",), "problem"
    config.eval.n, config.eval.prompts, config.eval.problems = 1, 256, count
    config.warm_start.steps = 0
    # These keys are about training alone.
    config.checkpoint.best = config.log.wandb = ""
    with contextlib.closing(Trainer(config)) as trainer:
        params = trainer.initial_params(workdir)
        prompts = trainer.held_out
        if split == "train":
            prompts = evaluation.spread(trainer.problems, count)
        return chains(trainer, params, [prompt["problem"] for prompt in prompts], revisions)


def chains(
    trainer: Trainer, params: Any, problems: Sequence[Problem], revisions: int
) -> list[dict[str, Any]]:
    """Samples a chain for each problem of the wrapped task, and verdicts on its responses."""
    task = trainer.task
    assert isinstance(task, Revision)
    lines = [
        {"id": p["id"], "prompt": p["prompt"], "responses": [], "rewards": [], "verified": []}
        for p in problems
    ]
    prompts = {i: task.ask("problem", problem) for i, problem in enumerate(problems)}
    for turn in range(revisions + 1):
        graded = _answer(trainer, params, list(prompts.values()), turn)
        for i, (response, reward) in zip(list(prompts), graded, strict=True):
            lines[i]["responses"].append(response)
            lines[i]["rewards"].append(reward)
            if reward >= 1.0:
                del prompts[i]
            elif task.wrapped.answer(response) is not None:
                # A response without an answer is not shown: the prompt stays as it was.
                prompts[i] = task.ask("revision", problems[i], response)
        if not prompts:
            break
    verify, places = [], []
    for problem, line in zip(problems, lines, strict=True):
        line["verified"] = [None] * len(line["responses"])
        for at, response in enumerate(line["responses"]):
            if task.wrapped.answer(response) is not None:
                right = line["rewards"][at] >= 1.0
                verify.append(task.ask("verification", problem, response, right=right))
                places.append((line["verified"], at))
    verdicts = _answer(trainer, params, verify, revisions + 1)
    for (verified, at), (_, reward) in zip(places, verdicts, strict=True):
        verified[at] = reward
    return lines


def _answer(
    trainer: Trainer, params: Any, prompts: Sequence[Problem], turn: int
) -> list[tuple[str, float]]:
    """Returns a response to each prompt and its reward, 0 if it could not be graded.

    `turn` decides the random numbers.
    """
    if not prompts:
        return []
    trainer.held_out = prompts
    found = trainer.evaluate(params, turn)
    rewards = [reward if reward == reward else 0.0 for reward in found.rewards[:, 0].tolist()]
    return list(zip([response for (response,) in found.responses], rewards, strict=True))


def main(argv: Sequence[str]) -> None:
    del argv
    given = flags.FLAGS
    logging.set_verbosity(logging.WARNING)
    options = {"split": given.split, "count": given.problems, "revisions": given.revisions}
    try:
        lines = sample(pathlib.Path(given.workdir).expanduser(), given.step, **options)
    except (ConfigError, checkpoints.CheckpointError) as e:
        command_line.stop(e)
    path = pathlib.Path(given.output).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace(path, "".join(json.dumps(line) + "\n" for line in lines))
    kept = sum(len(line["rewards"]) > 1 and line["rewards"][-1] >= 1.0 for line in lines)
    print(f"{kept} of {len(lines)} chains fail first and end right: {path}")


if __name__ == "__main__":
    # Modules that import this one may define flags with these names.
    flags.DEFINE_string("workdir", None, "Directory of a run.", required=True)
    flags.DEFINE_string("output", None, "File to write.", required=True)
    flags.DEFINE_integer("step", 0, "Step of a policy that the run keeps; 0 is before RL.")
    flags.DEFINE_enum("split", "train", ["train", "test"], "Split of the problems.")
    flags.DEFINE_integer("problems", 1 << 30, "Number of problems; all by default.", lower_bound=1)
    flags.DEFINE_integer("revisions", 8, "Revisions of a wrong answer at most.", lower_bound=1)
    app.run(main)
