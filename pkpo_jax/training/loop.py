"""The training loop: sample, grade and update, with evaluations and checkpoints."""

from __future__ import annotations

import math
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import logging
from jax.experimental import multihost_utils
from ml_collections import config_dict

from pkpo_jax import parallel
from pkpo_jax.training import evaluation, files, metrics, provenance, run_directory, samples
from pkpo_jax.training.checkpoints import Checkpoints
from pkpo_jax.training.entropy_watch import EntropyWatch
from pkpo_jax.training.trainer import Graded, Trainer


class Stopped(RuntimeError):
    """The error of a run that ends before its last step; `code` is the exit code of the process."""

    NOTHING_LEARNED, NOT_WRITTEN, TERMINATED = 3, 4, 128 + signal.SIGTERM

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @classmethod
    def by_failed_write(cls, workdir: pathlib.Path, error: files.WriteError) -> Stopped:
        """Returns the exception of a run whose directory cannot be written."""
        return cls(
            cls.NOT_WRITTEN,
            f"{workdir} could not be written ({error}); make room, or repair the disk that it is "
            "on, and start the same command again: it goes on from the newest checkpoint there.",
        )


class Coverage:
    """Tracks which of `total` training problems were seen so far, and which any sample solved."""

    def __init__(self, total: int, seen: Sequence[int] = (), solved: Sequence[int] = ()) -> None:
        self.total, self.seen, self.solved = total, set(seen), set(solved)

    def add(self, ids: Sequence[int], rewards: np.ndarray) -> None:
        self.seen.update(ids)
        self.solved.update(i for i, r in zip(ids, rewards, strict=True) if (r >= 1.0).any())

    def metrics(self) -> dict[str, float]:
        """Returns the share of solved problems among all, as in paper A, and among those seen."""
        return {
            "train/problems_seen": len(self.seen),
            "train/cumulative_solve_rate": len(self.solved) / max(self.total, 1),
            "train/seen_solve_rate": len(self.solved) / max(len(self.seen), 1),
        }

    def to_json(self) -> dict[str, list[int]]:
        return {"seen": sorted(self.seen), "solved": sorted(self.solved)}


class Termination:
    """A context in which SIGTERM does not end the process at once.

    The run saves and ends after the current step instead.
    """

    def __enter__(self) -> Termination:
        self._asked, self._previous = False, None
        # With several processes JAX handles the signal, since all have to stop at the same step.
        alone = jax.process_count() == 1
        self._listens = alone and threading.current_thread() is threading.main_thread()
        if self._listens:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def _handle(self, *_: Any) -> None:
        self._asked = True
        os.write(2, b"\nSIGTERM: saves and ends after this step.\n")
        # A second SIGTERM ends the process at once.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def asked(self, step: int) -> bool:
        """Returns whether to stop now, after `step`, which is the same on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

    def __exit__(self, *_: Any) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._previous)


class Run:
    """A run in its directory: its progress and everything that it records there."""

    def __init__(self, trainer: Trainer, workdir: pathlib.Path) -> None:
        self.trainer, self.workdir, config = trainer, workdir, trainer.config
        self.config, self.steps, self.done = config, config.train.steps, 0
        self.evaluated: evaluation.Evaluation | None = None
        self._coverage = Coverage(len(trainer.problems))
        # This describes the best evaluation so far: {"metric": name, "value": ..., "step": ...}.
        self._best: dict[str, Any] = {}
        self._skipped_in_row, self._saving_s = 0, 0.0
        self._watch = EntropyWatch()
        self._writer: metrics.MetricWriter | metrics.NullWriter = metrics.NullWriter()
        self._compilations = metrics.CompilationCounter()
        # The bar is shown after the SFT warm start, which has a bar of its own.
        self._bar = tqdm.tqdm(disable=True)
        like = trainer.programs.abstract_state()
        self._checkpoints = Checkpoints(
            workdir, config.checkpoint.keep, like, trainer.like_in_flight()
        )

    def start(self) -> None:
        """Starts from the newest checkpoint, or evaluates the policy before RL and starts there."""
        restored = self._checkpoints.restore_newest()
        self._on_first("metrics", lambda: self._open_writer(restored.step if restored else -1))
        at = restored.step if restored else 0
        self._on_first("runs.json", lambda: provenance.record(self.workdir, at))
        if restored:
            progress, self.done = restored.progress, restored.step
            self._coverage = Coverage(len(self.trainer.problems), **progress["coverage"])
            self._skipped_in_row = progress["skipped_in_row"]
            # The best value of another metric says nothing about this one.
            if progress["best"].get("metric") == self.config.checkpoint.best:
                self._best = progress["best"]
            self.state = self.trainer.restore(
                restored.state, progress, self.done, restored.in_flight, self.workdir
            )
            if parallel.is_first_process():
                # These steps were warned of when they were taken.
                for line in metrics.read(self.workdir):
                    self._watch.add(line["step"], line)
                finished = self.done >= self.config.train.steps
                what = "is finished, with" if finished else "goes on after"
                print(f"{self.workdir} {what} step {self.done}.", flush=True)
        else:
            self.state = self.trainer.start(self.workdir)
        self._saved = self._started = self.done
        self._bar = tqdm.tqdm(
            desc="RL",
            initial=self.done,
            total=self.steps,
            unit="step",
            dynamic_ncols=True,
            disable=not parallel.is_first_process(),
        )
        self._checkpoints.warm_up(self.state)
        if not restored:
            self._record(self._evaluate())

    def step(self) -> dict[str, float]:
        """Takes one step, records it and returns its metrics."""
        step = self.done
        if step == self._started:
            self._show("compiling")
        self.state, values, graded = self.trainer.step(self.state, step)
        self.done = step + 1
        self._coverage.add(graded.ids.tolist(), graded.grades.rewards)
        values |= self._coverage.metrics()
        if self.done % self.config.eval.every == 0 or self.done == self.steps:
            started = time.perf_counter()
            values |= self._evaluate()
            values["time/eval_s"] = time.perf_counter() - started
        # This is the time of the previous step's save: a step saves after writing its metrics.
        values["time/checkpoint_s"], self._saving_s = self._saving_s, 0.0
        self._write_samples(step, graded)
        values |= metrics.memory()
        values["compilations"] = self._compilations.count
        self._record(values)
        if (warning := self._watch.add(self.done, values)) and parallel.is_first_process():
            logging.warning("%s", warning)
        self._check_skipped(graded)
        every = self.config.checkpoint.every
        due = self.done == self.steps or (every and self.done % every == 0)
        if self._is_best(values) or due:
            self.save()
        self._checkpoints.check()
        self._bar.set_description("RL", refresh=False)
        self._bar.set_postfix(_bar_texts(values, self.config.rollout.n), refresh=False)
        self._bar.update()
        return values

    def result(self) -> evaluation.Evaluation:
        """Returns the evaluation of the policy after the last step."""
        if not self.evaluated:
            self._show("evaluating")
        return self.evaluated or self.trainer.evaluate(self.state.policy, self.steps)

    def _show(self, doing: str) -> None:
        """Shows on the bar what the run does now, if it does not take steps."""
        self._bar.set_description(f"RL, {doing}")

    def _is_best(self, values: dict[str, float]) -> bool:
        """Returns whether this step's evaluation is the best so far, and remembers it if so."""
        metric = self.config.checkpoint.best
        value = values.get(metric, math.nan)
        if not math.isfinite(value) or value <= self._best.get("value", -math.inf):
            return False
        self._best = {"metric": metric, "value": value, "step": self.done}
        return True

    def save(self) -> None:
        """Starts to save a checkpoint, unless this step has one already."""
        if self._saved == self.done:
            return
        started = time.perf_counter()
        self._show("saving")
        # Metrics have to be on disk first: a run that resumes after this step does not repeat them.
        self._on_first("metrics", self._writer.sync)
        progress = {
            **self.trainer.state_dict(),
            "coverage": self._coverage.to_json(),
            "best": self._best,
            "skipped_in_row": self._skipped_in_row,
        }
        in_flight = self.trainer.in_flight()
        best = self._best.get("step")
        self._checkpoints.save(self.done, self.state, progress, best=best, in_flight=in_flight)
        self._saved = self.done
        self._saving_s += time.perf_counter() - started

    def close(self) -> None:
        """Waits until everything is written, and closes the files."""
        self._compilations.close()
        self._show("saving")
        try:
            with files.writing("metrics"):
                self._writer.close()
        finally:
            try:
                self._checkpoints.close()
            finally:
                self._bar.set_description("RL", refresh=False)
                self._bar.close()

    def _open_writer(self, resume_step: int) -> None:
        project, config = self.config.log.wandb, self.config.to_dict()
        self._writer = metrics.MetricWriter(self.workdir, resume_step, wandb=project, config=config)

    def _record(self, values: dict[str, float]) -> None:
        self._on_first("metrics", lambda: self._writer.write(self.done, values))

    def _on_first(self, what: str, write: Callable[[], None]) -> None:
        """Calls `write` on the first process, and raises a WriteError on all if it fails."""
        error = None
        if parallel.is_first_process():
            try:
                with files.writing(what):
                    write()
            except Exception as e:
                error = e
        if not parallel.on_all(error is None):
            raise error or files.WriteError(f"{what}: see the error of the first process")

    def _evaluate(self) -> dict[str, float]:
        self._show("evaluating")
        self.evaluated = self.trainer.evaluate(self.state.policy, self.done)
        shown = {name: self.evaluated.terms[name] for name in self.evaluated.metrics}
        self._on_first(
            "intervals",
            lambda: metrics.write_intervals(self.workdir, self.done, evaluation.intervals(shown)),
        )
        return {f"eval/{name}": value for name, value in self.evaluated.metrics.items()}

    def _write_samples(self, step: int, graded: Graded) -> None:
        every, count = self.config.log.samples_every, self.config.log.samples
        if not every or not (step % every == 0 or self.done == self.steps):
            return
        path = self.workdir / "samples" / f"{self.done:06d}.txt"
        title = f"step {self.done}, k = {self.trainer.schedule(step)}"
        text = self.trainer.tokenizer.text
        prompts = [text(problem["prompt"]) for problem in graded.problems[:count]]
        responses, rows = graded.responses[:count], graded.rows[:count]
        rewards, weights = graded.grades.rewards[rows], graded.weights[rows]
        self._on_first(
            "samples", lambda: samples.write(path, title, prompts, responses, rewards, weights)
        )

    def _check_skipped(self, graded: Graded) -> None:
        """Saves the batch and stops the run if too many steps in a row changed no parameters."""
        self._skipped_in_row = self._skipped_in_row + 1 if graded.batch else 0
        if self._skipped_in_row < self.config.train.max_skipped:
            return
        batch = self.trainer.devices.fetch(graded.batch)._asdict()
        arrays = {**batch.pop("rollout")._asdict(), **batch}
        arrays |= {"ids": graded.ids, "statuses": graded.grades.statuses}
        path = self.workdir / "stopped" / f"{self.done:06d}.npz"

        def write() -> None:
            path.parent.mkdir(exist_ok=True)
            np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})

        self._on_first("the batch", write)
        ungraded = not np.isfinite(graded.grades.rewards).any()
        raise Stopped(
            Stopped.NOTHING_LEARNED,
            f"{self._skipped_in_row} steps in a row, up to step {self.done}, "
            + (
                "no response could be graded; fix the grader, and start the same command again."
                if ungraded
                else "the loss or its gradient was not finite, and the update was skipped; to go "
                "on with other settings, give a new --workdir and --config.model.checkpoint="
                f"{self.workdir}/checkpoints/<step>/params."
            )
            + f" The last batch is in {path}.",
        )


def train(config: config_dict.ConfigDict, workdir: pathlib.Path) -> evaluation.Evaluation:
    """Runs `config` in `workdir`, or resumes from the newest checkpoint there.

    Returns:
      The evaluation of the policy after the last step.

    Raises:
      ConfigError: the config cannot run, or the directory belongs to another run. It is raised
        before anything compiles.
      Stopped: the run received SIGTERM, cannot continue, or cannot write its records.
    """
    trainer = Trainer(config)
    try:
        with parallel.first_process_first("run directory"):
            run_directory.claim(workdir, trainer.config, create=parallel.is_first_process())
        with Termination() as termination:
            return _train(Run(trainer, workdir), termination)
    except files.WriteError as e:
        raise Stopped.by_failed_write(workdir, e) from e
    finally:
        trainer.close()


def _train(run: Run, termination: Termination) -> evaluation.Evaluation:
    try:
        run.start()
        while run.done < run.steps:
            run.step()
            if run.done < run.steps and termination.asked(run.done):
                run.save()
                raise Stopped(
                    Stopped.TERMINATED,
                    f"SIGTERM: step {run.done} is saved in {run.workdir}, and the same command "
                    "goes on from there.",
                )
        return run.result()
    finally:
        run.close()


def _bar_texts(values: dict[str, float], n: int) -> dict[str, str]:
    return {
        "k": str(values["train/k"]),
        "reward": f"{values['train/reward_mean']:.2f}",
        f"pass@{n}": f"{values[f'train/pass_at_{n}']:.2f}",
        "entropy": f"{values['train/entropy']:.2f}",
        "solved": f"{values['train/cumulative_solve_rate']:.2f}",
    }
