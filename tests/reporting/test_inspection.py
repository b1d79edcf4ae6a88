"""Tests of inspecting a saved run: the choice of policy and config, and the results shown."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import pkpo_jax as pkpo
from pkpo_jax.policy import checkpoints
from pkpo_jax.reporting import inspection, tables
from pkpo_jax.reporting.inspection import Request
from pkpo_jax.reporting.labels import LABELS
from pkpo_jax.tasks import Maze
from pkpo_jax.tasks.drawing import printable
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import metrics, saved_run
from pkpo_jax.training.evaluation import Evaluation
from pkpo_jax.training.trainer import Trainer
from tests.training.test_run import small_config


def graded_by_length(self, problem, response):
    return float(len(response) % 2)


@pytest.fixture(scope="module", autouse=True)
def graded():
    """Grades about every other response as right, since a random policy would solve no maze."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Maze, "grade", graded_by_length)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Writes what a run of two steps leaves, with random policies, so that no update compiles."""
    config = small_config()
    config.warm_start.steps, config.train.steps = 0, 2
    config.k = {0: 4, 1: 2}
    workdir = run_directory(tmp_path_factory.mktemp("runs") / "maze", [], config)
    lines = []
    for step in (1, 2):
        config.seed = step
        params = Trainer(config).initial_params(workdir)
        checkpoints.write(str(workdir / "checkpoints" / str(step) / "params"), params)
        config.seed = 0
        measured = Trainer(config).evaluate(params, step).metrics
        lines.append({"step": step, **{f"eval/{name}": value for name, value in measured.items()}})
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir


def request_for(workdir, **options):
    return Request(config_lib.default(), options.pop("overrides", {}), **options)


def read(path):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


def run_directory(path, steps, config=None, lines=()):
    """Writes the part of a run's directory that choosing a policy reads."""
    for step in steps:
        (path / "checkpoints" / str(step) / "params").mkdir(parents=True)
    config = config or config_lib.default()
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_stored_config_is_the_one_that_ran(tmp_path):
    config = small_config()
    config.parallel.mesh = (-1, 2, 1)
    config.task.fog = 0
    run_directory(tmp_path, [], config)
    stored_config = saved_run.read_config(tmp_path)
    assert stored_config.to_dict() == config.to_dict()
    assert stored_config.k == {0: 4, 3: 1}
    changed = saved_run.override(stored_config, {"k": {0: 2}, "eval.n": 7, "task.fog": 0.5})
    assert changed.k == {0: 2} and stored_config.eval.n == 5
    assert (changed.eval.n, changed.task.fog) == (7, 0.5)
    with pytest.raises(config_lib.ConfigError, match=r"unknown config key eval\.m; did you mean"):
        saved_run.override(stored_config, {"eval.m": 7})
    with pytest.raises(config_lib.ConfigError, match=r"eval\.n='seven'; "):
        saved_run.override(stored_config, {"eval.n": "seven"})


def test_a_config_of_an_older_version_is_filled_up_and_one_of_another_refused(tmp_path):
    settings = small_config().to_dict()
    del settings["rollout"]["temperature"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert saved_run.read_config(tmp_path).rollout.temperature == 1.0
    for change, message in [
        ({"rollout": {"p": 1}}, r"config\.json: unknown config key rollout\.p"),
        ({"task": {"name": "chess"}}, r"config\.json: task\.name='chess'; expected one of"),
        ({"task": None}, r"config\.json is not a config"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(config_lib.ConfigError, match=message):
            saved_run.read_config(tmp_path)


def test_which_policy(tmp_path):
    lines = [
        {"step": step, "eval/pass_at_1": value, "eval/pass_at_8": 1 - value}
        for step, value in [(0, 0.9), (100, 0.5), (200, 0.7), (300, 0.6)]
    ]
    config = config_lib.default()
    run = run_directory(tmp_path / "run", [100, 300], config, lines)
    # Orbax writes to such a directory while it saves.
    (run / "checkpoints" / "400.orbax-checkpoint-tmp-1" / "params").mkdir(parents=True)

    def policy(step):
        at, checkpoint = saved_run.policy(run, config, step)
        return at, str(pathlib.Path(checkpoint).relative_to(tmp_path))

    assert policy("newest") == policy("300") == (300, "run/checkpoints/300/params")
    # Steps 0 and 200 were better, but are not kept.
    assert policy("best") == (300, "run/checkpoints/300/params")
    config.checkpoint.best = "eval/pass_at_8"
    assert policy("best") == (100, "run/checkpoints/100/params")
    config.checkpoint.best = "eval/pass_at_3"
    with pytest.raises(config_lib.ConfigError, match=r"no eval/pass_at_3 at .* \(100, 300\)"):
        policy("best")
    with pytest.raises(config_lib.ConfigError, match=r"--step=0: .* it has 100, 300\."):
        policy("0")
    # The policy before RL is that of the SFT warm start, or the official one.
    config.warm_start.steps = 5
    with pytest.raises(config_lib.ConfigError, match=r"it has 100, 300\."):
        policy("0")
    (run / "warm_start").mkdir()
    assert policy("0") == (0, "run/warm_start")
    config.warm_start.steps, config.model.checkpoint = 0, str(tmp_path / "official")
    assert policy("0") == (0, "official")
    # A directory without a run has only that policy.
    assert saved_run.policy(tmp_path / "new", config, "newest")[0] == 0
    with pytest.raises(config_lib.ConfigError, match=r"--step=100: .* it has 0\."):
        saved_run.policy(tmp_path / "new", config, "100")
    config.model.checkpoint = ""
    with pytest.raises(config_lib.ConfigError, match="does not exist"):
        saved_run.policy(tmp_path / "new", config, "newest")
    empty = run_directory(tmp_path / "empty", [])
    with pytest.raises(config_lib.ConfigError, match="holds no checkpoint yet"):
        saved_run.policy(empty, config, "newest")


def test_eval_gives_what_the_run_measured_and_more(finished, capsys):
    (found,) = inspection.evaluate([finished], request_for(finished))
    measured = metrics.read(finished)[-1]
    assert found.metrics == {
        key.removeprefix("eval/"): value
        for key, value in measured.items()
        if key.startswith("eval/")
    }
    assert 0.0 < found.metrics["pass_at_1"] < 1.0
    directory = finished / "eval" / "test_step2"
    assert (directory / "pass_at_k.png").read_bytes()[:4] == b"\x89PNG"
    assert (directory / "pass_hat_k.png").read_bytes()[:4] == b"\x89PNG"
    assert not (directory / "max_at_k.png").exists()
    summary = read(directory / "summary.json")
    assert (summary["n"], summary["problems"], summary["left_out"]) == (5, 10, 0)
    assert summary["overrides"] == {} and summary["seed"] == 0
    for name, figure in summary["figures"].items():
        low, high = figure["interval"]
        assert low <= figure["value"] <= high, name
    curve = [summary["figures"][f"pass_at_{k}"]["value"] for k in range(1, 6)]
    assert curve == sorted(curve) and curve[0] == found.metrics["pass_at_1"]
    lines = [json.loads(line) for line in (directory / "problems.jsonl").open()]
    assert [line["id"] for line in lines] == [problem["id"] for problem in found.problems]
    assert np.mean([line["pass_at_4"] for line in lines]) == pytest.approx(curve[3])
    assert np.mean([line["majority_right"] for line in lines]) == found.metrics["majority"]
    for line in lines:
        assert line["correct"] == sum(len(text) % 2 for text in line["responses"])
        walks = {text for text in line["responses"] if set(text) <= set("LRUD")}
        assert line["distinct_answers"] == len(walks)
    shown = capsys.readouterr().out
    low, high = summary["figures"]["pass_at_4"]["interval"]
    assert f"{curve[3]:.3f} ({low:.3f}-{high:.3f})" in shown
    # The page of a run has the same names.
    assert all(LABELS[name] in shown for name in ("truncated", "invalid", "entropy"))
    assert "maze, step 2" in shown and "10 x 5 samples" in shown and str(directory) in shown


def test_several_runs_are_compared(finished, tmp_path, capsys, monkeypatch):
    other = tmp_path / "maze"
    shutil.copytree(finished, other)
    monkeypatch.setenv("COLUMNS", "120")
    overrides = {"eval.problems": 12, "task.reward": "progress"}
    monkeypatch.setattr(Maze, "grade", lambda *arguments: graded_by_length(*arguments) / 2)
    request = request_for(finished, overrides=overrides, step="1", split="train")
    found = inspection.evaluate([other, finished], request)
    assert [len(one.problems) for one in found] == [12, 12]
    assert found[0].metrics == found[1].metrics
    plots = {path.name for path in (other / "eval").glob("*.png")}
    assert plots == {
        "compare_train.png",
        "compare_train_max_at_k.png",
        "compare_train_pass_hat_k.png",
    }
    assert read(finished / "eval" / "train_step1" / "summary.json")["overrides"] == overrides
    assert (finished / "eval" / "train_step1" / "max_at_k.png").exists()
    shown = capsys.readouterr().out
    for workdir in (finished, other):
        assert f"{workdir.parent.name}/maze, step 1" in shown
    with pytest.raises(config_lib.ConfigError, match="more than once"):
        inspection.evaluate([other, other / ".." / "maze"], request)


def test_a_checkpoint_is_evaluated_in_a_directory_of_its_own(finished, tmp_path, capsys):
    checkpoint = str(finished / "checkpoints" / "2" / "params")
    config = saved_run.read_config(finished)
    config.model.checkpoint, config.warm_start.steps, config.eval.n = checkpoint, 5, 4
    (found,) = inspection.evaluate([tmp_path / "new"], Request(config, {}))
    assert found.rewards.shape == (10, 4)
    assert read(tmp_path / "new" / "eval" / "test_step0" / "summary.json")["step"] == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["eval"]
    with pytest.raises(config_lib.ConfigError, match=r"drop --config\.model\.checkpoint"):
        inspection.evaluate(
            [finished], request_for(finished, overrides={"model.checkpoint": checkpoint})
        )


def test_problems_that_could_not_be_graded_are_left_out(finished, capsys, monkeypatch):
    def failing(self, problem, response):
        return float("nan") if problem["id"] % 2 else graded_by_length(self, problem, response)

    monkeypatch.setattr(Maze, "grade", failing)
    (found,) = inspection.evaluate([finished], request_for(finished, step="1"))
    odd = np.array([problem["id"] % 2 for problem in found.problems], bool)
    directory = finished / "eval" / "test_step1"
    summary = read(directory / "summary.json")
    assert summary["left_out"] == odd.sum() == 5
    rewards = found.rewards[~odd]
    assert summary["figures"]["pass_at_1"]["value"] == pytest.approx(rewards.mean())
    for line in (directory / "problems.jsonl").read_text().splitlines():
        line = json.loads(line, parse_constant=pytest.fail)
        ungraded = line["id"] % 2 == 1
        assert (line["pass_at_1"] is None) == (line["majority_right"] is None) == ungraded
        assert line["rewards"].count(None) == 5 * ungraded
    assert "5 of 10 problems are left out" in capsys.readouterr().out


def test_samples_show_each_weight(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    found = inspection.sample(finished, request_for(finished), count=2, ks=[4, 1])
    assert found.rewards.shape == (2, 4)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[1:])) <= 80
    rows = [line.split() for line in lines if line.split()[:1] in (["0"], ["1"])]
    shown = [(float(r), int(times), *map(float, w), text) for r, times, *w, text in rows]
    for problem, responses, rewards in zip(
        found.problems, found.responses, found.rewards, strict=True
    ):
        assert all(f"│ {row}" in "\n".join(lines) for row in problem["prompt"].split())
        mine, shown = shown[: len(set(responses))], shown[len(set(responses)) :]
        weights = [np.asarray(pkpo.pkpo_weights(rewards, k)) for k in (1, 4)]
        for i, response in enumerate(responses):
            text = printable(response, newline="\u21b5\n").split("\n")[0] or "(empty)"
            row = next(row for row in mine if (row[0], row[-1]) == (rewards[i], text))
            assert row[1] == responses.count(response)
            assert row[2:-1] == pytest.approx(tuple(w[i] for w in weights), abs=6e-5)
    assert not shown
    again = inspection.sample(finished, request_for(finished), count=2)
    assert again.responses == found.responses
    assert " k=1 " in (out := capsys.readouterr().out) and " k=2 " in out
    other = inspection.sample(finished, request_for(finished, overrides={"seed": 1}), count=2)
    assert other.responses != found.responses


def test_ks_that_the_group_does_not_serve(finished):
    for overrides, ks, message in [
        ({}, [1, 5], "k=5; expected 1 to 4, which rollout.n=4 samples serve"),
        ({}, [0], "k=0; expected 1 to 4"),
        ({"estimator.baseline": "loo", "k": 1}, [4], "k=4; expected 1 to 3"),
        ({"estimator.name": "rloo", "k": 1}, [2], "takes no k"),
        ({"estimator.name": "posterior"}, [0], "k=0; expected at least 1"),
    ]:
        config = saved_run.override(saved_run.read_config(finished), overrides)
        with pytest.raises(config_lib.ConfigError, match=message):
            inspection.checked_ks(config, ks)
    beyond = saved_run.override(saved_run.read_config(finished), {"estimator.name": "posterior"})
    assert inspection.checked_ks(beyond, [64, 2]) == [2, 64]
    config = saved_run.override(saved_run.read_config(finished), {"estimator.name": "tang", "k": 4})
    assert inspection.checked_ks(config, []) == [4]


def test_what_a_policy_writes_does_not_break_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    responses = ["[bold]a[/bold]", "\x1b[31mred\a", "a\nb", "word " * 60, "", "z" * 300]
    rewards = np.array([[1.0, 0.5, float("nan"), -2.0, 0.0, 0.25]], np.float32)
    problem = {"id": 3, "prompt": "[red]What?[/red]\x1b[2J\nNow."}
    found = Evaluation([problem], [responses], rewards, {}, [responses], [], {})
    weights = {k: np.arange(6.0)[None] / 100 for k in (1, 2, 4, 16)}
    tables.samples(found, [problem["prompt"]], weights, "train")
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80 and "\x1b" not in shown
    for text in (
        "train problem 3: 1 of 6 right",
        r"│ [red]What?[/red]\x1b[2J",
        "│ Now.",
        "[bold]a[/bold]",
        r"\x1b[31mred\x07",
        "a↵",
        "(empty)",
    ):
        assert text in shown, text
    assert shown.replace("\n", "").count("z") == 300
    ranks = [line.split()[0] for line in shown.splitlines() if line.split()[1:2] == ["1"]]
    assert ranks == ["1", "0.5", "0.25", "0", "-2", "invalid"]
    # An ungraded response has no weight.
    assert [line.count(" - ") for line in shown.splitlines() if "invalid" in line] == [4]
