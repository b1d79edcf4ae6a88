"""The run: sample, grade, update, with evaluations, checkpoints and a report."""

from __future__ import annotations

import pathlib
import signal
import threading
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.training import evaluation, metrics, report, run_directory, samples
from pkpo_jax.training.checkpoints import Checkpoints
from pkpo_jax.training.trainer import Graded, Trainer


class Stopped(RuntimeError):
    """The run ended before its last step; `code` is what the process exits with."""

    NOT_FINITE, NOT_WRITTEN, TERMINATED = 3, 4, 128 + signal.SIGTERM

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


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


class Termination:
    """Within it, SIGTERM is noted and not obeyed: the run saves and ends after its step."""

    def __enter__(self) -> Termination:
        self._asked, self._before = False, None
        # With several processes JAX listens itself, for all of them have to stop at one step.
        alone = jax.process_count() == 1
        self._listens = alone and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_: Any) -> None:
        self._asked = True
        # A second one is obeyed.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def asked(self, step: int) -> bool:
        """Whether to stop now, after `step`; the same on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(self, *_: Any) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)


class Run:
    """A run in its directory: what it has done, and what is written of it."""

    def __init__(self, trainer: Trainer, workdir: pathlib.Path) -> None:
        self.trainer, self.workdir, config = trainer, workdir, trainer.config
        self.config, self.steps, self.done = config, config.train.steps, 0
        self.evaluated: evaluation.Evaluation | None = None
        self._coverage = Coverage()
        self._best: float | None = None
        self._skipped_in_row, self._saving_s = 0, 0.0
        self._writer: metrics.MetricWriter | metrics.NullWriter = metrics.NullWriter()
        self._compilations = metrics.CompilationCounter()
        like = trainer.programs.abstract_state()
        self._checkpoints = Checkpoints(
            workdir, config.checkpoint.keep, like, trainer.like_in_flight()
        )

    def start(self) -> None:
        """From the newest checkpoint, or from the policy before RL, which is evaluated."""
        restored = self._checkpoints.restore_newest()
        self.trainer.read_reference(self.workdir)
        if restored:
            self.state, progress, self.done = restored.state, restored.progress, restored.step
            self._coverage = Coverage(**progress["coverage"])
            self._best, self._skipped_in_row = progress["best"], progress["skipped_in_row"]
            self.trainer.restore(progress, self.done, restored.in_flight)
            if parallel.is_first_process():
                print(f"{self.workdir} goes on after step {self.done}.", flush=True)
        else:
            self.state = self.trainer.start(self.workdir)
        self._saved = self.done
        self._checkpoints.warm_up(self.state)
        if parallel.is_first_process():
            with run_directory.writing("metrics"):
                self._writer = metrics.MetricWriter(
                    self.workdir,
                    self.done if restored else -1,
                    wandb=self.config.log.wandb,
                    config=self.config.to_dict(),
                )
        if not restored:
            self._record(self._evaluate())

    def step(self) -> dict[str, float]:
        """One step, recorded: its metrics."""
        at = self.done
        self.state, figures, graded = self.trainer.step(self.state, at)
        self.done = at + 1
        self._coverage.add(graded.ids.tolist(), graded.rewards)
        figures |= self._coverage.metrics()
        if self.done % self.config.eval.every == 0 or self.done == self.steps:
            started = time.perf_counter()
            figures |= self._evaluate()
            figures["time/eval_s"] = time.perf_counter() - started
        # Of the save after the step before: this one's comes after its metrics are written.
        figures["time/checkpoint_s"], self._saving_s = self._saving_s, 0.0
        self._write_samples(at, graded)
        figures |= metrics.memory()
        figures["compilations"] = self._compilations.count
        self._record(figures)
        self._check_skipped(at, bool(figures["train/skipped"]), graded)
        every = self.config.checkpoint.every
        best = figures.get(self.config.checkpoint.best)
        improved = best is not None and (self._best is None or best > self._best)
        if improved:
            self._best = best
        if improved or self.done == self.steps or (every and self.done % every == 0):
            self.save(best)
        self._checkpoints.check()
        return figures

    def save(self, metric: float | None = None) -> None:
        """Begins a checkpoint, unless there is one of this step."""
        if self._saved == self.done:
            return
        started = time.perf_counter()
        with run_directory.writing("metrics"):
            # They are on disk before the checkpoint is.
            self._writer.sync()
        progress = {
            **self.trainer.state_dict(),
            "coverage": self._coverage.to_json(),
            "best": self._best,
            "skipped_in_row": self._skipped_in_row,
        }
        in_flight = self.trainer.in_flight()
        self._checkpoints.save(self.done, self.state, progress, metric=metric, in_flight=in_flight)
        self._saved = self.done
        self._saving_s += time.perf_counter() - started

    def close(self) -> None:
        """Waits for what is being written."""
        self._compilations.close()
        try:
            with run_directory.writing("metrics"):
                self._writer.close()
        finally:
            self._checkpoints.close()

    def _record(self, figures: dict[str, float]) -> None:
        with run_directory.writing("metrics"):
            self._writer.write(self.done, figures)

    def _evaluate(self) -> dict[str, float]:
        self.evaluated = self.trainer.evaluate(self.state.params, self.done)
        return {f"eval/{name}": value for name, value in self.evaluated.metrics.items()}

    def _write_samples(self, at: int, graded: Graded) -> None:
        every, count = self.config.log.samples_every, self.config.log.samples
        if not every or not (at % every == 0 or self.done == self.steps):
            return
        # Compiled by all processes, or the first would wait for none.
        weights = self.trainer.weights(at, graded.rewards)[graded.rows]
        if parallel.is_first_process():
            with run_directory.writing("samples"):
                samples.write(
                    self.workdir / "samples" / f"{self.done:06d}.txt",
                    f"step {self.done}, k = {self.trainer.schedule(at)}",
                    [problem["prompt"] for problem in graded.problems[:count]],
                    graded.responses[:count],
                    graded.rewards[graded.rows],
                    weights,
                )

    def _check_skipped(self, at: int, skipped: bool, graded: Graded) -> None:
        self._skipped_in_row = self._skipped_in_row + 1 if skipped else 0
        if self._skipped_in_row < self.config.train.max_skipped:
            return
        batch = self.trainer.devices.fetch(graded.batch)._asdict()
        rollout = batch.pop("rollout")._asdict()
        path = self.workdir / "not_finite" / f"{self.done:06d}.npz"
        if parallel.is_first_process():
            arrays = {k: v for k, v in {**batch, **rollout}.items() if v is not None}
            arrays |= {"ids": graded.ids, "statuses": graded.statuses}
            with run_directory.writing("the batch"):
                path.parent.mkdir(exist_ok=True)
                np.savez_compressed(path, **arrays)
        raise Stopped(
            Stopped.NOT_FINITE,
            f"the loss or its gradient was not finite in {self._skipped_in_row} steps in a row, up "
            f"to step {self.done}, and the policy was left as it was; the last batch is in {path}. "
            "A lower train.learning_rate, float32 or bounded rewards may mend it.",
        )


def train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> None:
    """Runs `config` in `workdir`, or goes on from the newest checkpoint there.

    Raises:
      ConfigError: before anything compiles, if the config cannot run or the directory is not its.
      Stopped: the run was told to end, cannot go on, or cannot be written.
    """
    trainer = Trainer(config)
    try:
        with parallel.first_process_first("run directory"):
            run_directory.claim(workdir, config, create=parallel.is_first_process())
        with Termination() as termination:
            evaluated = _train(Run(trainer, workdir), termination)
        if parallel.is_first_process():
            with run_directory.writing("the report"):
                report.write(workdir, trainer.task, evaluated, n=config.rollout.n)
    except run_directory.WriteError as e:
        raise Stopped(
            Stopped.NOT_WRITTEN,
            f"{workdir} could not be written ({e}); make room, or mend what it lies on, and start "
            "the same command again: it goes on from the newest checkpoint there.",
        ) from e
    finally:
        trainer.close()


def _train(run: Run, termination: Termination) -> evaluation.Evaluation:
    try:
        run.start()
        bar = tqdm.tqdm(
            range(run.done, run.steps),
            "RL",
            initial=run.done,
            total=run.steps,
            unit="step",
            dynamic_ncols=True,
            disable=not parallel.is_first_process(),
        )
        for _ in bar:
            figures = run.step()
            bar.set_postfix(_bar_figures(figures, run.config.rollout.n))
            if run.done < run.steps and termination.asked(run.done):
                run.save()
                raise Stopped(
                    Stopped.TERMINATED,
                    f"SIGTERM: step {run.done} is saved in {run.workdir}, and the same command "
                    "goes on from there.",
                )
        return run.evaluated or run.trainer.evaluate(run.state.params, run.steps)
    finally:
        run.close()


def _bar_figures(figures: dict[str, float], n: int) -> dict[str, str]:
    return {
        "k": figures["train/k"],
        "reward": f"{figures['train/reward_mean']:.2f}",
        f"pass@{n}": f"{figures[f'train/pass_at_{n}']:.2f}",
        "entropy": f"{figures['train/entropy']:.2f}",
        "solved": f"{figures['train/cumulative_solve_rate']:.2f}",
    }
