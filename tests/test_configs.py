"""Tests that every config and argument builds, and runs a step on files in real formats."""

import importlib
import json
import math
import re

import numpy as np
import pytest

from pkpo_jax import configs, schedules
from pkpo_jax.configs import recipes
from pkpo_jax.training import checks, loop, metrics
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.trainer import Trainer

CONFIGS = configs.names()
PAPER_A = ["k=1", "k=2", "k=4", "k=8", "k=16", "tang", "k=8,anneal", "anneal=100"]
ENTROPY = [f"entropy={coef}" for coef in (".001", ".005", ".01", ".05", ".1")]
K_AT_FIRST = {"k=2": 2, "k=4": 4, "k=8": 8, "k=16": 16, "tang": 16, "k=8,anneal": 8}
K_AT_FIRST |= {"anneal=100": 8, "paper_a": 8}
PAPER_B = ["k=1", "k=4", "k=8", "k=16", "k=8,explore=200-400", "paper_a"]


def build(name, argument=""):
    return importlib.import_module(f"pkpo_jax.configs.{name}").get_config(argument)


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes problems in the layouts of the MATH release and of MBPP.

    HumanEval and ARC are installed as packages.
    """
    root = tmp_path_factory.mktemp("files")
    for split in ("train", "test"):
        for i in range(4):
            row = {
                "problem": f"What is ${i} + {i}$?",
                "level": "Level 1",
                "type": "Algebra",
                "solution": rf"It is $\boxed{{{2 * i}}}$.",
            }
            write(root / "MATH" / split / "algebra" / f"{i}.json", row)
    functions = [
        {
            "text": f"Write a function to add {i} to a number.",
            "code": f"def add_{i}(x):\r\n  return x + {i}",
            "task_id": i,
            "test_setup_code": "",
            "test_list": [f"assert add_{i}({x}) == {x + i}" for x in range(3)],
            "challenge_test_list": [],
        }
        for i in (*range(11, 15), *range(601, 605))
    ]
    write(root / "MBPP" / "mbpp.jsonl", *functions)
    return root


def shrink(config, files):
    """Reduces an experiment to a tiny policy of characters and one step."""
    config.model.size, config.model.chat, config.model.dtype = "tiny", False, "float32"
    config.parallel.mesh = (-1, 1, 1)
    # These lengths are in characters.
    longest = {"math": 128, "maze": 384, "arc": 1312, "code": 1536}
    config.rollout.max_prompt, config.rollout.max_response = longest[config.task.name], 4
    config.train.micro_batches, config.train.prompts = 1, config.train.minibatches
    config.warm_start.steps, config.train.steps = 0, 1
    # Evaluation batches have the shapes of training batches, so one sampler serves both if both
    # sample from the whole distribution.
    config.eval.n = config.rollout.n
    config.eval.problems = config.eval.prompts = config.train.prompts
    config.grading.workers = min(config.grading.workers, 1)
    if config.task.name == "code":
        config.task.allow_code_execution = True
    if config.task.name in ("math", "code"):
        config.task.data_dir = str(files / {"math": "MATH", "code": "MBPP"}[config.task.name])
    if config.task.name == "maze":
        config.task.max_side = config.task.min_side
        config.task.train_problems = config.task.test_problems = 20
    return config


def test_all_of_the_papers_are_here():
    papers = ("2b_math", "9b_math", "2b_code", "9b_code", "9b_arc", "2b_maze")
    assert {f"gemma2_{x}" for x in papers} <= set(CONFIGS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_and_all_its_arguments_are_valid(name):
    arguments = ["", *(PAPER_B if name == "gemma2_2b_maze" else PAPER_A + ENTROPY), "paper_b"]
    for argument in arguments:
        config = build(name, argument)
        if argument == "k=16" and config.rollout.n < 16:
            continue
        # The mesh of the papers' configs, (-1, 16, heads), needs at least this many devices.
        devices = abs(math.prod(config.parallel.mesh))
        checks.validate(config, devices, reads_weights=False)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("gemma2_")])
def test_a_step_of_the_papers_configs(name, files, tmp_path):
    config = shrink(build(name), files)
    loop.train(config, tmp_path / "run")
    lines = metrics.read(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1]
    statuses = ("ok", "wrong_format", "timeout", "error")
    graded = {status: lines[1][f"grade/{status}"] for status in statuses}
    assert sum(graded.values()) == config.train.prompts * config.rollout.n
    # An untrained policy writes hardly any answers, and grading does not fail.
    assert graded["wrong_format"] > 0.9 * sum(graded.values())
    assert graded["timeout"] == graded["error"] == 0
    assert 0.0 <= lines[1]["eval/pass_at_1"] <= lines[1]["eval/pass_at_2"] <= 1.0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("gemma2_2b_math", PAPER_A + ENTROPY[-1:]), ("gemma2_2b_maze", PAPER_B)],
)
def test_a_step_of_every_argument(name, arguments, files):
    """Trains one step for every argument.

    Configs that differ only in k share their compiled programs, as a run does when k changes. Of
    those that differ in one coefficient, only one is trained.
    """
    trainers, trained = {}, []
    for argument in arguments:
        config = shrink(build(name, argument), files)
        config.train.steps, config.grading.workers = 1, 0
        schedule = schedules.step(config_lib.k_by_step(config.k))
        config.k = 1
        key = str(config)
        if key not in trainers:
            trainers[key] = Trainer(config)
        trainer = trainers[key]
        trainer.schedule = schedule
        state = trainer.start(None)
        _, figures, _ = trainer.step(state, 0)
        trained.append(figures["train/k"])
        assert np.isfinite(figures["train/loss"]) and figures["train/skipped"] == 0
    assert len(trainers) == 2
    assert trained == [K_AT_FIRST.get(argument, 1) for argument in arguments]


def test_what_the_arguments_mean():
    def k(argument):
        return build("gemma2_2b_math", argument).k

    assert [k(f"k={i}") for i in (1, 2, 4, 8)] == [1, 2, 4, 8]
    assert k("") == 8 and k("tang") == k("k=16") == 16
    assert k("k=8,anneal") == k("anneal") == {0: 8, 1500: 1}
    assert build("gemma2_2b_math", "anneal").train.steps == 3000
    assert k("k=4,explore=20-30") == {0: 1, 20: 4, 30: 1}
    entropy = build("gemma2_2b_math", "entropy=.05")
    assert (entropy.k, entropy.loss.entropy_coef) == (1, 0.05)
    assert build("gemma2_2b_math").estimator.name == "pkpo"
    assert build("gemma2_2b_math", "paper_b,k=4").estimator.name == "passk_training"


@pytest.mark.parametrize(
    "argument",
    [
        "explore=5",
        "k=2,k=4",
        "paper_a=7",
        "tang=",
        "explore=9-5",
        "entropy=x",
        "k=2;anneal",
        "k=8,anneal,explore=1-2",
        "k",
        "k=0",
        "k=2.5",
        "kk=2",
        "tang=3",
        "k=2,tang",
        "paper_a,paper_b",
        "anneal=0",
        "entropy=",
    ],
)
def test_arguments_that_mean_nothing(argument):
    with pytest.raises(ValueError, match=re.escape("expected")):
        recipes.apply(config_lib.default(), argument)
