"""The run: sample, grade, update, with evaluations, checkpoints and a report."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Sequence

import numpy as np
import tqdm
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.training import evaluation, metrics, report, run_directory
from pkpo_jax.training.checkpoints import Checkpoints
from pkpo_jax.training.trainer import Trainer


class Coverage:
    """The training problems seen so far, and those that any sample has solved."""

    def __init__(self, seen: Sequence[int] = (), solved: Sequence[int] = ()) -> None:
        self.seen, self.solved = set(seen), set(solved)

    def add(self, ids: Sequence[int], rewards: np.ndarray) -> None:
        self.seen.update(ids)
        self.solved.update(i for i, r in zip(ids, rewards, strict=True) if (r >= 1.0).any())

    def metrics(self) -> dict[str, float]:
        return {
            "train/problems_seen": len(self.seen),
            "train/cumulative_solve_rate": len(self.solved) / max(len(self.seen), 1),
        }

    def to_json(self) -> dict[str, list[int]]:
        return {"seen": sorted(self.seen), "solved": sorted(self.solved)}


def train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    """Runs `config` in `workdir`, or goes on from the newest checkpoint there.

    Raises:
      ConfigError: before anything compiles, if the config cannot run or the directory is not its.
    """
    compilations = metrics.CompilationCounter()
    trainer = Trainer(config)
    with parallel.first_process_first("run directory"):
        run_directory.claim(workdir, config, create=parallel.is_first_process())
    steps, every = config.train.steps, config.checkpoint.every
    like = trainer.programs.abstract_state()
    checkpoints = Checkpoints(workdir, config.checkpoint.keep, like)
    first = checkpoints.latest_step()
    if first is None:
        state, coverage = trainer.start(workdir), Coverage()
    else:
        state, progress = checkpoints.restore(first)
        coverage = Coverage(**progress)
        if parallel.is_first_process():
            print(f"{workdir} goes on after step {first}.", flush=True)
    writer = metrics.make_writer(workdir, resume_step=-1 if first is None else first)
    evaluated = None
    try:
        if first is None:
            first = 0
            evaluated = trainer.evaluate(state.params, 0)
            writer.write(0, _eval_metrics(evaluated))
        bar = tqdm.tqdm(
            range(first, steps),
            "RL",
            initial=first,
            total=steps,
            unit="step",
            dynamic_ncols=True,
            disable=not parallel.is_first_process(),
        )
        for at in bar:
            done = at + 1
            state, figures, ids, rewards = trainer.step(state, at)
            coverage.add(ids, rewards)
            figures |= coverage.metrics()
            if done % config.eval.every == 0 or done == steps:
                started = time.perf_counter()
                evaluated = trainer.evaluate(state.params, done)
                figures |= _eval_metrics(evaluated)
                figures["time/eval_s"] = time.perf_counter() - started
            figures["compilations"] = compilations.count
            writer.write(done, figures)
            if done == steps or (every and done % every == 0):
                checkpoints.save(done, state, coverage.to_json())
            bar.set_postfix(_bar_figures(figures, config.rollout.n))
    finally:
        writer.close()
        checkpoints.close()
        compilations.close()
    evaluated = evaluated or trainer.evaluate(state.params, steps)
    if parallel.is_first_process():
        report.write(workdir, trainer.task, evaluated, n=config.rollout.n)


def _eval_metrics(evaluated: evaluation.Evaluation) -> dict[str, float]:
    return {f"eval/{name}": value for name, value in evaluated.metrics.items()}


def _bar_figures(figures: dict[str, float], n: int) -> dict[str, str]:
    return {
        "k": figures["train/k"],
        "reward": f"{figures['train/reward_mean']:.2f}",
        f"pass@{n}": f"{figures[f'train/pass_at_{n}']:.2f}",
        "entropy": f"{figures['train/entropy']:.2f}",
        "solved": f"{figures['train/cumulative_solve_rate']:.2f}",
    }
