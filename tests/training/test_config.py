import dataclasses
import json

import pytest
from ml_collections import config_dict

from pkpo_jax.tasks import Task
from pkpo_jax.training import checks, run_directory
from pkpo_jax.training import config as config_lib
from pkpo_jax.training.trainer import Trainer


def changed(**changes):
    name = changes.get("task__name", "maze")
    try:
        config = config_lib.default(name)
    except ValueError:
        config = config_lib.default()
    config.rollout.max_prompt = 21
    for key, value in changes.items():
        *path, name = key.split("__")
        section = config
        for part in path:
            section = section[part]
        with section.unlocked():
            section[name] = value
    return config


@dataclasses.dataclass(frozen=True)
class Unfinished(Task):
    length: int

    def problems(self, split):
        return []


class Empty(Task):
    def problems(self, split):
        return [{"id": 0, "prompt": "\u00e9"}] if split == "train" else []


class French(Empty):
    def problems(self, split):
        return [{"id": 0, "prompt": "\u00e9"}]


PMAP = dict(parallel__mode="pmap", parallel__mesh=(-1, 1, 1))


def of_responses(responses):
    return responses.weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(train__lr=1e-3), "unknown config key train.lr; the keys there are train.b1, "),
        (dict(train__learning_rat=1e-3), "did you mean train.learning_rate?"),
        (dict(train__temperature=1.0), "did you mean eval.temperature or rollout.temperature?"),
        (dict(task__walls=0.2), "unknown config key task.walls; the keys there are task.data_dir"),
        (
            dict(task__name="chess"),
            "task.name='chess'; expected one of .*math, maze.*, or your own class",
        ),
        (dict(task__name="chess:Chess"), "'chess:Chess' cannot be imported .No module named 'ch"),
        (dict(task__name="random:Random"), "'random:Random' has no problems and no grade; see"),
        (dict(task__name="tests.training.test_config:Unfinished"), "give every option a default"),
        (
            dict(task__name="code", grading__workers=1, grading__timeout=8.0),
            "grading.timeout=8.0 with task.timeout=6.0; .* set grading.timeout to 35 or more",
        ),
        (
            dict(task__name="revision", task__inner="code", grading__workers=1)
            | dict(task__options="timeout=9.0"),
            "grading.timeout=40.0 with task.timeout=9.0; .* set grading.timeout to 50 or more",
        ),
        (dict(k=0), "k=0"),
        (dict(k=17), "k=17: 17 is above 16, the largest k that rollout.n=16 samples serve"),
        (dict(k={0: 8, 100: 20}), "20 is above 16"),
        (dict(k={5: 8}), "expected a k for step 0"),
        (dict(k="8"), "k='8': k schedule '8'; expected an integer, a staircase such as"),
        (dict(k="linear(8, 1)"), r"expected .* 'linear\(8, 1, 1500\)'"),
        (dict(k="cosine(20, 1, 10)"), "20 is above 16"),
        (dict(k="mixture(1: 1, 20: 1)"), "20 is above 16"),
        (dict(k="blend(8)"), r"expected .* 'mixture\(1: .5, 8: .5\)'"),
        (dict(k={0: "mixture(1)"}), "expected an integer, or a mixture such as"),
        (
            dict(k="mixture(1: 1, 8: 3)", estimator__name="passk_training"),
            r"k=mixture\(1: 0.25, 8: 0.75\), but it takes one k; give one k, or",
        ),
        (
            dict(estimator__name="off_policy", loss__importance_cap=2.0),
            "with estimator.name='off_policy', whose weights .* set loss.importance_cap to 0",
        ),
        (dict(k=16, estimator__baseline="loo"), "16 is above 15, .* with baseline 'loo'"),
        (dict(rollout__n=1), "rollout.n=1: the estimator compares"),
        (dict(rollout__n=0, estimator__baseline="none"), "rollout.n=0; expected a whole number"),
        (dict(estimator__baseline="mean"), "estimator.baseline='mean'; expected one of none"),
        (
            dict(rollout__temperature=0.0),
            "rollout.temperature=0.0; expected a number at least 0.01",
        ),
        (dict(eval__top_p=0.0), "eval.top_p=0.0; expected a number above 0 and at most 1"),
        (dict(eval__temperature=-0.5), "eval.temperature=-0.5; expected a number at least 0, or N"),
        (dict(estimator__returns="sums"), "estimator.returns='sums'; expected one of weights, adv"),
        (dict(train__decay_fraction=2.0), "at least 0 and at most 1"),
        (dict(train__learning_rate=float("nan")), "train.learning_rate=nan"),
        (
            dict(model__size="7b"),
            "model.size='7b'; expected one of auto, tiny, 2b, 9b, 27b, ",
        ),
        (dict(parallel__mesh=(3, 1, 1)), r"parallel.mesh=\(3, 1, 1\) does not split 4 device"),
        (dict(parallel__mesh=(-1, -1, 1)), "one of them -1"),
        (dict(parallel__mesh=("a", 1, 1)), "three sizes"),
        (dict(parallel__mesh=(1.0, 1, 1)), "three sizes"),
        (dict(seed=2**32), "seed=4294967296; expected a whole number, at least 0 and below"),
        (dict(k={}), "k={}: .* expected a k for step 0"),
        (dict(k={0: 8, 1.5: 1}), "expected steps that are integers"),
        (dict(train__prompts=6, rollout__n=6), "train.prompts=6 does not split over 4 devices"),
        (dict(eval__prompts=7, eval__n=6), "eval.prompts=7 does not split over 4 devices"),
        (
            # Six prompts split over fsdp, but five responses do not split over data.
            dict(train__prompts=6, rollout__n=5, k=1, parallel__mesh=(2, 2, 1)),
            "train.prompts=6 does not split over 4 devices, nor do the responses",
        ),
        (
            dict(train__prompts=8, rollout__n=6, train__micro_batches=4),
            r"train.prompts=8 in 4 parts does not split .* fewer \(micro-\)batches",
        ),
        (dict(train__micro_batches=3), "train.prompts=16 does not split into .*micro_batches=3"),
        (dict(train__prompts=6, parallel__mode="pmap"), "train.prompts=6 does not split over 4"),
        (
            dict(parallel__mode="pmap", parallel__mesh=(1, 4, 1)),
            r"parallel.mode='pmap' with parallel.mesh=\(1, 4, 1\); pmap keeps",
        ),
        (dict(parallel__mode="vmap"), "parallel.mode='vmap'; expected one of jit, pmap"),
        (dict(prompt__shots=-1), "prompt.shots=-1; expected a whole number, at least 0"),
        (
            dict(prompt__stop=("",)),
            r"prompt.stop=\('',\); expected a tuple of strings that are not",
        ),
        (dict(prompt__stop=(7,)), r"prompt.stop=\(7,\); expected a tuple of strings"),
        (
            dict(prompt__template="{prompt}"),
            "prompt.template='{prompt}'; expected one {prompt} and",
        ),
        (dict(prompt__template="{response}{prompt}"), "and, after it, one {response}"),
        (dict(prompt__template="{prompt}{prompt}{response}"), "expected one {prompt} and"),
        (dict(model__chat=True), "model.chat=True, .* the tiny policy reads"),
        (dict(estimator__name="gpro"), "estimator.name='gpro': expected one of pkpo, off_pol"),
        (dict(estimator__name="grpo", k=4), "'grpo': k=4, but it takes no k; set k to 1"),
        (dict(estimator__name="tang", k=4), "k=4, but it trains for max@n; set k to rollout.n, 16"),
        (dict(estimator__method="half"), "estimator.method='half'; expected one of full, boot"),
        (
            dict(estimator__name="passk_training", estimator__method="adaptive", **PMAP),
            "'adaptive' ranks all prompts .* set parallel.mode='jit'",
        ),
        (dict(train__epochs=2), "with loss.policy='reinforce', .* set loss.policy='ppo'"),
        (
            dict(train__minibatches=3, loss__policy="ppo"),
            "train.prompts=16 does not split into train.minibatches=3 of train.micro_batches=1",
        ),
        (
            dict(loss__policy="gspo", loss__aggregation="token-mean"),
            "'gspo' with loss.aggregation='token-mean'; .* set loss.aggregation='sequence-mean'",
        ),
        (
            dict(loss__policy="cispo", loss__dual_clip=3.0),
            "loss.dual_clip=3.0 with loss.policy='cispo', .* set loss.dual_clip=0",
        ),
        (dict(loss__kl="sage", loss__kl_in_reward=True), "is its KL divergence for k1 alone"),
        (dict(loss__token_weights="resrk"), "'resrk': expected one of resrl, or your own as mod"),
        (
            dict(loss__token_weights="operator:abs"),
            "'operator:abs': it fails on .2, 16, 3. tokens: TypeError",
        ),
        (
            dict(loss__token_weights="tests.training.test_config:of_responses"),
            r"it fails on .2, 16, 3. tokens: ValueError: it gives .2, 16.; expected .2, 16, 3.",
        ),
        (
            dict(loss__token_weights="resrl", rollout__n=1, k=1, estimator__baseline="none"),
            "loss.token_weights='resrl' with rollout.n=1; .* set rollout.n to 2 or more",
        ),
        (
            dict(loss__token_weights="resrl", k="linear(8, 1, 100)"),
            "'resrl' with estimator.name='pkpo', .* estimator.baseline='centered'",
        ),
        (dict(loss__dual_clip=0.5), "loss.dual_clip=0.5; expected 0 .off. or more than 1"),
        (dict(loss__clip_low=1.5), "loss.clip_low=1.5; expected a number at least 0 and at most 1"),
        (dict(loss__kl_coef=0.1), "loss.kl='none' with loss.kl_coef=0.1, .* set loss.kl to k1"),
        (dict(loss__importance_cap=0.5), "loss.importance_cap=0.5; expected 0 .off. or at least 1"),
        (dict(loss__entropy_coef=float("inf")), "loss.entropy_coef=inf; expected a finite number"),
        (dict(loss__kl="k3", loss__kl_in_reward=True), "is its KL divergence for k1 alone"),
        (
            dict(loss__kl="k1", loss__kl_in_reward=True, estimator__name="maxrl", k=1),
            "estimator.name='maxrl', which reads rewards as right or wrong",
        ),
        (dict(rollout__ahead=True), "rollout.ahead with loss.importance_cap=0; .* 2.0"),
        (dict(checkpoint__best="pass@1"), "checkpoint.best='pass@1'; expected '' or a metric of"),
        (dict(checkpoint__best="eval/pass_at_64"), "eval/pass_at_32, eval/max_at_1"),
        (dict(grading__workers=-1), "grading.workers=-1; expected a whole number, at least 0"),
        (dict(grading__timeout=0.0), "grading.timeout=0.0; expected a number above 0"),
        (
            dict(model__lora__rank=8),
            "model.lora.rank=8, and model.checkpoint is empty; .* set model.checkpoint, or model.l",
        ),
        (
            dict(model__lora__rank=40, model__size="tiny", model__checkpoint="/"),
            "model.lora.rank=40; the smallest matrices of Gemma tiny have the rank 32: set a lower",
        ),
        (
            dict(model__lora__rank=8, model__size="2b", model__checkpoint="/nowhere"),
            "/nowhere does not exist; .* Adapters need the parameters that their training started",
        ),
        (dict(model__lora__targets="w"), "model.lora.targets='w'; expected one of all, attention,"),
        (dict(model__lora__alpha=0.0), "model.lora.alpha=0.0; expected a number above 0"),
        (
            dict(model__lora__r=8),
            "unknown config key model.lora.r; did you mean model.lora.rank?",
        ),
        (dict(model__size="2b"), "model.checkpoint is empty; .* huggingface.co/google/gemma-2"),
    ],
)
def test_bad_configs_raise_one_line_with_key_and_value(changes, message):
    with pytest.raises(config_lib.ConfigError, match=message) as e:
        checks.validate(changed(**changes), devices=4)
    assert "\n" not in str(e.value)


def test_demonstrations_that_several_devices_compute_are_named(caplog):
    config = changed(warm_start__steps=1, warm_start__batch=6)
    checks.validate(config, devices=4)
    assert "warm_start.batch=6 does not split over 4 devices" in caplog.text
    caplog.clear()
    config.warm_start.batch = 8
    checks.validate(config, devices=4)
    assert not caplog.text


def test_every_key_is_refused_a_value_of_another_type():
    # The ConfigDict itself keeps the type of parallel.mesh, a tuple.
    for name in config_lib.KEYS.keys() - {"parallel.mesh"}:
        config = config_lib.default()
        section, _, last = name.rpartition(".")
        section = config_lib.get(config, section) if section else config
        del section[last]
        section[last] = object()
        with pytest.raises(config_lib.ConfigError, match=rf"^{name}=<object") as e:
            checks.validate(config, devices=4)
        assert ", ".join(config_lib.KEYS[name].choices) in str(e.value)


def test_k_is_one_staircase_however_it_is_spelled():
    config = config_lib.default()
    config.k = {0: 8, 1500: 1}
    in_json = json.loads(json.dumps(config.to_dict()))["k"]
    spelled = (config.k, in_json, config_dict.ConfigDict({0: 8, 1500: 1}), {1500: 1, "0": 8})
    assert [config_lib.k_by_step(k) for k in spelled] == [{0: 8, 1500: 1}] * 4
    assert config_lib.k_by_step(4) == {0: 4}


def test_a_frozen_config_is_the_same_and_its_sections_are_static():
    config = changed(parallel__mesh=[1, 2, 1], loss__kl_coef=1, k={0: 8, 3: 1})
    frozen = config_lib.freeze(config)
    assert dataclasses.asdict(frozen) == config.to_dict()
    assert frozen.parallel.mesh == (1, 2, 1) and frozen.eval.temperature is None
    again = config_lib.freeze(config)
    assert hash((frozen.loss, frozen.train)) == hash((again.loss, again.train))
    with pytest.raises(dataclasses.FrozenInstanceError):
        frozen.train.steps = 5


def test_where_and_how_patiently_a_run_computes_may_change_and_how_long_it_is():
    assert {name for name, key in config_lib.KEYS.items() if key.may_change} == {
        *("parallel.mesh", "parallel.mode", "train.micro_batches", "model.remat", "train.steps"),
        *("model.remat_policy", "model.unroll", "eval.prompts"),
        *("checkpoint.every", "checkpoint.keep", "checkpoint.best"),
        *("grading.workers", "grading.timeout", "grading.batch_timeout"),
        *("log.samples_every", "log.samples", "log.report", "log.wandb"),
    }


def test_a_run_goes_on_with_more_steps_and_no_fewer_than_it_has_done(tmp_path):
    workdir, config = tmp_path / "run", config_lib.default()
    run_directory.claim(workdir, config)
    (workdir / "checkpoints" / "200" / "params").mkdir(parents=True)
    for steps in (500, 200):
        config.train.steps = steps
        run_directory.claim(workdir, config)
        assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == steps
    config.train.steps = 199
    with pytest.raises(
        config_lib.ConfigError, match=r"train.steps=199, .* has done 200; set .* 200"
    ):
        run_directory.claim(workdir, config)
    assert json.loads((workdir / "config.json").read_text())["train"]["steps"] == 200


def test_weights_and_biases_has_to_be_there(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(config_lib.ConfigError, match=r"log.wandb='mazes', but wandb is not inst"):
        checks.validate(changed(log__wandb="mazes"), devices=4)


def test_the_default_is_valid_and_so_are_schedules():
    checks.validate(changed(), devices=1)
    checks.validate(changed(k={0: 8, 1500: 1}), devices=8)
    checks.validate(changed(k=16), devices=1)
    checks.validate(changed(k="linear(8, 1, 1500)"), devices=1)
    checks.validate(changed(k="blend(8, mixture(1: 1, 2: 1), 1500)"), devices=1)
    checks.validate(changed(k={0: 8, 1500: "mixture(1: .5, 8: .5)"}), devices=1)
    checks.validate(changed(estimator__name="off_policy", rollout__ahead=True), devices=1)
    # Six prompts do not split over four devices, but their sixteen responses each do.
    checks.validate(changed(train__prompts=6), devices=4)
    checks.validate(changed(rollout__n=1, estimator__baseline="none"), devices=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rollout__max_prompt=20), "rollout.max_prompt=20, but a prompt has 21 tokens"),
        (
            dict(rollout__max_response=5, warm_start__steps=1),
            "rollout.max_response=5, but a demonstration has 6 tokens",
        ),
        (dict(task__fog=3.0), "task.fog=3.0; expected"),
        (dict(task__name="tests.training.test_config:Empty"), "Empty has no test problems"),
        (dict(task__name="tests.training.test_config:French"), "character '\u00e9'; the tiny pol"),
        (dict(model__checkpoint="/no"), "model.checkpoint: /no does not exist; expected a dir"),
        (dict(task__max_path=90, task__min_path=80), "no maze number 0"),
    ],
)
def test_what_the_task_cannot_serve_is_said_before_anything_compiles(changes, message):
    config = changed(**changes)
    if config.task.name == "maze":
        config.task.train_problems, config.task.test_problems = 200, 20
    with pytest.raises(config_lib.ConfigError, match=message):
        Trainer(config)
