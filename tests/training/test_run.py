"""Tests of whole runs of a few steps: their records, resuming, and compiling only once."""

import importlib.machinery
import json
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator

from pkpo_jax.configs import recipes
from pkpo_jax.reporting import page
from pkpo_jax.tasks import Maze
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import entropy_watch, loop, metrics, provenance
from pkpo_jax.training.trainer import Trainer


def small_config():
    config = config_lib.default()
    config.k = {0: 4, 3: 1}
    config.task.train_problems = 50
    config.task.test_problems = 10
    config.rollout.max_prompt, config.rollout.max_response, config.rollout.n = 21, 8, 4
    config.warm_start.steps, config.warm_start.batch = 3, 8
    config.train.steps, config.train.prompts = 6, 4
    # The ten held-out problems are evaluated in batches of four, so the last batch is partial.
    config.eval.every, config.eval.n, config.eval.prompts = 2, 5, 4
    config.checkpoint.every = 2
    return config


def comparable(workdir):
    """Returns the metrics that do not depend on the machine, the clock or the number of starts."""
    of_the_machine = ("time/", "memory/", "compilations")
    return [
        {k: v for k, v in line.items() if not k.startswith(of_the_machine)}
        for line in metrics.read(workdir)
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, made_programs):
    workdir = tmp_path_factory.mktemp("run") / "maze"
    # This run counts its compilations, so it must not use programs of an earlier run.
    made_programs.clear()
    loop.train(small_config(), workdir)
    return workdir


def test_a_run_leaves_its_directory(finished):
    assert json.loads((finished / "config.json").read_text())["k"] == {"0": 4, "3": 1}
    lines = metrics.read(finished)
    assert [line["step"] for line in lines] == list(range(7))
    assert [line.get("train/k") for line in lines] == [None, 4, 4, 4, 1, 1, 1]
    assert [i for i, line in enumerate(lines) if "eval/pass_at_5" in line] == [0, 2, 4, 6]
    assert [start["step"] for start in provenance.read(finished)] == [0]
    intervals = metrics.read_intervals(finished)
    assert list(intervals) == [0, 2, 4, 6]
    for step, ends in intervals.items():
        finite = {key for key, value in lines[step].items() if value is not None}
        assert set(ends) == {key for key in finite if key.startswith("eval/")}
        low, high = ends["eval/entropy"]
        assert low < lines[step]["eval/entropy"] < high
    for line in lines[1:]:
        solved = line["train/cumulative_solve_rate"] * 50
        assert solved == pytest.approx(line["train/seen_solve_rate"] * line["train/problems_seen"])
        assert 0.0 <= line["train/pass_at_1"] <= line["train/pass_at_4"] <= 1.0
        assert line["train/pass_at_1"] == pytest.approx(line["train/reward_mean"], abs=1e-6)
        assert 0.0 < line["train/entropy"] < np.log(13)
        assert line["train/log_prob_gap_max"] < 1e-5
        assert {"time/sample_s", "time/grade_s", "time/update_s"} <= set(line)
    assert list((finished / "tensorboard").glob("events*"))
    # The run keeps the newest two checkpoints and the best one.
    kept = {p.name for p in (finished / "checkpoints").iterdir()}
    assert {"4", "6"} <= kept and len(kept) <= 3
    assert sorted(p.name for p in (finished / "samples").iterdir()) == ["000001.txt", "000006.txt"]


def test_nothing_compiles_after_the_first_step(finished):
    lines = metrics.read(finished)
    # The value of k changes at step 3, and steps 2, 4 and 6 have evaluations with a partial batch.
    assert {line["compilations"] for line in lines[1:]} == {lines[1]["compilations"]}
    assert lines[1]["compilations"] > 0


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Returns a trainer whose policy has learned to answer, its state and its directory."""
    workdir, config = tmp_path_factory.mktemp("learned"), small_config()
    config.task.reward, config.warm_start.steps = "progress", 100
    trainer = Trainer(config)
    return trainer, trainer.start(workdir), workdir


def test_rewards_reach_the_update_beside_their_own_responses(learned, monkeypatch):
    """Checks the batch that the update gets by grading its tokens again."""
    trainer, start, _ = learned
    batches, update = [], trainer.programs.update

    def recording_update(state, batch, *arguments):
        batches.append(jax.device_get(batch))
        return update(state, batch, *arguments)

    monkeypatch.setattr(trainer.programs, "update", recording_update)
    # The update donates its state, so it gets a copy.
    trainer.step(jax.tree.map(jnp.copy, start), 0)
    batch, decode = batches[0], trainer.tokenizer.decode
    by_prompt = {problem["prompt"]: problem for problem in trainer.problems}
    for prompt, group, rewards in zip(
        batch.prompts, batch.rollout.tokens, batch.rewards, strict=True
    ):
        problem = by_prompt[decode(prompt[1:])]
        graded = [trainer.task.grade(problem, decode(tokens)) for tokens in group]
        np.testing.assert_allclose(rewards, graded)
    assert len(np.unique(batch.rewards)) > 2


def test_the_warm_start_learns_answers_and_their_ends(learned):
    trainer, start, workdir = learned
    evaluated = trainer.evaluate(start.params, 0)
    assert evaluated.metrics["truncated"] < 0.2
    letters = "".join(text for group in evaluated.responses for text in group)
    assert sum(c in "LRUD" for c in letters) > 0.9 * len(letters)
    again = Trainer(trainer.config).start(workdir)
    for a, b in zip(jax.tree.leaves(start.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rewards_that_are_not_finite_are_left_out_and_counted(tmp_path, monkeypatch):
    grade = Maze.grade

    def failing_grade(self, problem, response):
        return float("nan") if problem["id"] % 2 else grade(self, problem, response)

    monkeypatch.setattr(Maze, "grade", failing_grade)
    config = small_config()
    config.train.steps = 2
    loop.train(config, tmp_path / "maze")
    lines = metrics.read(tmp_path / "maze")
    assert lines[0]["eval/invalid"] == 0.5
    # The diversity metrics are not finite if there are no answers.
    figures = [v for line in lines for k, v in line.items() if "distinct_" not in k]
    assert np.isfinite(figures).all()
    assert sum(line["train/invalid"] for line in lines[1:]) > 0


def test_tensorboard_holds_the_same_figures(finished):
    events = event_accumulator.EventAccumulator(str(finished / "tensorboard"))
    events.Reload()
    rewards = [line["train/reward_mean"] for line in metrics.read(finished)[1:]]
    stored = [event.value for event in events.Scalars("train/reward_mean")]
    np.testing.assert_allclose(stored, rewards, rtol=1e-6)


@pytest.mark.parametrize("moment", ["before a checkpoint", "in the first step"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(finished, tmp_path, monkeypatch, moment):
    stop_at = {"before a checkpoint": 3, "in the first step": 0}[moment]
    workdir = tmp_path / "maze"
    real_step = Trainer.step

    def interrupted_step(self, state, at):
        if at == stop_at:
            raise KeyboardInterrupt
        return real_step(self, state, at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted_step)
        with pytest.raises(KeyboardInterrupt):
            loop.train(small_config(), workdir)
    assert [line["step"] for line in metrics.read(workdir)] == list(range(stop_at + 1))
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/rew')
    loop.train(small_config(), workdir)
    assert comparable(workdir) == comparable(finished)


def test_a_finished_run_goes_on_with_more_steps_as_if_it_had_had_them(finished, tmp_path):
    config = small_config()
    config.train.steps = 2
    loop.train(config, tmp_path / "maze")
    config.train.steps = 6
    loop.train(config, tmp_path / "maze")
    assert comparable(tmp_path / "maze") == comparable(finished)


def test_a_finished_run_that_is_started_again_is_reported_and_left_alone(finished, capsys):
    before = (finished / "metrics.jsonl").read_text()
    assert not (finished / "report.html").exists() and not (finished / "plots").exists()
    page.write(finished, small_config(), loop.train(small_config(), finished))
    assert (finished / "metrics.jsonl").read_text() == before
    assert "after step 6" in capsys.readouterr().out
    assert (finished / "report.html").exists()
    assert {p.name for p in (finished / "plots").iterdir()} == {
        "learning_curves.png",
        "pass_at_k.png",
        "samples.png",
    }
    assert all((p.read_bytes()[:4] == b"\x89PNG") for p in (finished / "plots").iterdir())


def test_a_run_from_before_a_key_was_added_goes_on(finished, tmp_path):
    workdir = tmp_path / "old"
    shutil.copytree(finished, workdir)
    stored = json.loads((workdir / "config.json").read_text())
    # These keys did not exist in older runs, or had another default.
    del stored["task"]["fog"], stored["eval"]["top_p"]
    stored["grading"]["timeout"] = 10.0
    (workdir / "config.json").write_text(json.dumps(stored))
    config = small_config()
    loop.train(config, workdir)
    assert json.loads((workdir / "config.json").read_text())["eval"]["top_p"] == 1.0
    config.eval.top_p = 0.5
    with pytest.raises(config_lib.ConfigError, match=r"eval.top_p is 1.0 there and 0.5 here"):
        loop.train(config, workdir)


def test_another_config_or_foreign_files_are_refused(finished, tmp_path):
    config = small_config()
    config.train.learning_rate = 0.5
    with pytest.raises(config_lib.ConfigError, match=r"train.learning_rate is 0.0003 .* 0.5 here"):
        loop.train(config, finished)
    config.train.learning_rate, config.k = 3e-4, 2
    with pytest.raises(config_lib.ConfigError, match=r"k is {0: 4, 3: 1} there and {0: 2} here"):
        loop.train(config, finished)
    (tmp_path / "letter.txt").write_text("Dear")
    with pytest.raises(config_lib.ConfigError, match=r"no config\.json"):
        loop.train(small_config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["letter.txt"]


def test_the_same_seed_gives_the_same_run_and_another_does_not(finished, tmp_path):
    config = small_config()
    config.seed = 1
    loop.train(config, tmp_path / "other")
    assert comparable(tmp_path / "other") != comparable(finished)


def test_continuous_rewards_train(tmp_path):
    config = small_config()
    config.task.reward = "progress"
    loop.train(config, tmp_path / "maze")
    lines = metrics.read(tmp_path / "maze")[1:]
    assert max(line["train/reward_mean"] - line["train/pass_at_1"] for line in lines) > 0.01


def test_weights_and_biases_gets_the_same_lines(tmp_path, monkeypatch):
    """Tests with a substitute for the library, which is not installed."""
    started, logged = {}, []
    run = types.SimpleNamespace(
        log=logged.append, define_metric=lambda *a, **o: None, finish=lambda: logged.append("end")
    )
    library = types.ModuleType("wandb")
    library.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    library.init = lambda **options: started.update(options) or run
    monkeypatch.setitem(sys.modules, "wandb", library)
    config = small_config()
    config.warm_start.steps, config.train.steps, config.log.wandb = 0, 2, "mazes"
    loop.train(config, tmp_path / "maze")
    assert started["project"] == "mazes" and started["config"]["seed"] == 0
    assert logged.pop() == "end"
    assert logged == metrics.read(tmp_path / "maze")


def test_the_second_papers_recipe_trains(tmp_path):
    config = recipes.apply(small_config(), "paper_b")
    config.warm_start.steps = 0
    # At the start all rewards are 0, and so are the gradients without an entropy term.
    config.loss.entropy_coef = 0.01
    trainer = Trainer(config)
    _, figures, _ = trainer.step(trainer.start(tmp_path), 0)
    assert figures["train/update_norm"] > 0 and figures["train/skipped"] == 0
    # Each of the four updates uses one prompt, so the policy changes within the step.
    assert figures["train/policy_kl"] > 0


def test_workers_grade_as_the_run_itself_does(finished, tmp_path):
    config = small_config()
    config.grading.workers = 2
    loop.train(config, tmp_path / "maze")
    assert comparable(tmp_path / "maze") == comparable(finished)


def test_a_run_warns_once_of_its_entropy_and_goes_on_when_resumed(tmp_path, monkeypatch):
    """Runs six steps in windows of two, with entropies given in place of the policy's."""
    monkeypatch.setattr(entropy_watch, "WINDOW", 2)
    given, take = [1.0, 1.0, 0.4, 0.4, 0.19, 0.19], Trainer.step

    def step(self, state, number):
        state, values, graded = take(self, state, number)
        return state, values | {"train/entropy": given[number]}, graded

    monkeypatch.setattr(Trainer, "step", step)
    said = []
    monkeypatch.setattr(loop.logging, "warning", lambda _, text: said.append(text))
    config = small_config()
    config.train.steps = 4
    loop.train(config, tmp_path / "run")
    assert len(said) == 1 and said[0].startswith("step 4: the policy's entropy went from 1 to 0.4")
    config.train.steps = 6
    loop.train(config, tmp_path / "run")
    # The resumed run knows the entropy of the steps before it.
    assert len(said) == 2 and "from 0.4 to 0.19 nats per token since step 4" in said[1]
