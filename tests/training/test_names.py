"""Trains every estimator of the field on the maze task in one compiled program, and every loss."""

import dataclasses
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from pkpo_jax.reporting import inspection
from pkpo_jax.training import loop, metrics, programs, token_weights, weights
from pkpo_jax.training.config import Divergence, Estimator, Loss, Policy
from pkpo_jax.training.trainer import Trainer
from tests import pages
from tests.training.test_run import small_config

STEPS = 20
# The name of each estimator, and the k that it trains for.
TRAINED = {
    "shapley": 1,
    "tailrl": 1,
    "quantile": 3,
    "top_mean": 3,
    "trimmed_mean": 4,
    "pass_hat_k": 2,
    "edas": 1,
    "rarity": 1,
    "entropic": 1,
    "quantile_baseline": 1,
    "pacevolve": 4,
    "distinct": 3,
    "poly_epo": 3,
    "distinct_shapley": 1,
    "volume": 1,
    "bbg": 16,
    "posterior": 16,
    "tail_extrapolated": 16,
    "mixture": 4,
}


def any_of(names):
    """Returns one function in which k chooses the estimator, as 100 times its number plus its k."""
    made = [weights.make(Estimator("pkpo" if n == "mixture" else n)) for n in names]

    def weigh(rewards, k, valid, **options):
        def branch(name, own):
            def call(k):
                if name in ("mixture", "pacevolve"):
                    k = pkpo.Mixture(jnp.stack([jnp.ones_like(k), k]), [0.5, 0.5])
                return own(rewards, k, valid, **options)

            return call

        branches = [branch(*pair) for pair in zip(names, made, strict=True)]
        return jax.lax.switch(k // 100, branches, k % 100)

    return weigh


def test_every_name_trains_on_mazes(tmp_path, monkeypatch):
    """Takes real steps of a trainer; only the choice of the estimator is made in the program."""
    assert set(TRAINED) - {"mixture"} | {
        *("pkpo", "passk_training", "grpo", "dr_grpo", "rloo", "maxrl", "mahdavi", "tang"),
        "off_policy",
    } == set(weights.NAMES)
    config = small_config()
    config.rollout.n, config.warm_start.steps, config.warm_start.batch = 8, 80, 16
    config.warm_start.warmup_steps, config.train.warmup_steps = 5, 0
    names = list(TRAINED)
    weigh = any_of(names)
    monkeypatch.setattr(programs.weights, "make", lambda estimator: weigh)
    monkeypatch.setattr(programs.weights, "needs_classes", lambda estimator: True)
    monkeypatch.setattr(programs.weights, "needs_earlier", lambda estimator: True)
    # Other tests must not share this program, which they would for an equal config.
    config.estimator.quantile = 0.123
    trainer = Trainer(config)
    first = trainer.start(tmp_path)
    host, places = jax.device_get(first), jax.tree.map(lambda x: x.sharding, first)
    before = np.concatenate([np.ravel(x) for x in jax.tree.leaves(first.params)])
    after, solved, programs_made = {}, 0.0, set()
    for number, (name, k) in enumerate(TRAINED.items()):
        trainer.schedule = lambda step, number=number, k=k: 100 * number + k
        state = jax.device_put(host, places)
        for step in range(STEPS):
            state, metrics, graded = trainer.step(state, step)
            assert not metrics["train/skipped"], name
            assert np.isfinite(graded.weights).all(), name
            solved += metrics["train/reward_mean"]
        programs_made.add(trainer.programs.update._cache_size())
        after[name] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
    trainer.close()
    assert len(programs_made) == 1, "an estimator or a k compiled the update again"
    assert solved > 0.5
    # Mazes have binary rewards, of which the extrapolation of a tail says nothing.
    np.testing.assert_array_equal(after.pop("tail_extrapolated"), before)
    for name, params in after.items():
        assert np.isfinite(params).all() and np.abs(params - before).max() > 1e-5, name
    # No two names are the same estimator here, as their runs end at different parameters.
    ends = {tuple(params[:5000:7]): name for name, params in after.items()}
    assert len(ends) == len(after), [sorted(ends.values()), sorted(after)]


LOSSES = (
    Loss("gspo", 3e-4, 4e-4, aggregation="sequence-mean", kl="sage", kl_coef=0.05),
    Loss("cispo", 1.0, 0.28, kl="k3", kl_coef=0.05, token_weights="resrl"),
)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.policy)
def test_every_loss_trains_on_mazes(loss, tmp_path):
    """Takes real steps of a trainer, each with two updates, and counts what was clipped."""
    config = small_config()
    config.rollout.n, config.warm_start.steps, config.warm_start.batch = 8, 80, 16
    config.warm_start.warmup_steps, config.train.warmup_steps = 5, 0
    config.loss.update(dataclasses.asdict(loss))
    config.estimator.baseline, config.k, config.train.epochs = "centered", 4, 2
    trainer = Trainer(config)
    state = trainer.start(tmp_path)
    before = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
    clipped = kl = 0.0
    for step in range(STEPS):
        state, metrics, _ = trainer.step(state, step)
        assert not metrics["train/skipped"]
        clipped += metrics["train/clip_fraction"]
        kl = metrics["train/kl"]
    trainer.close()
    after = np.concatenate([np.ravel(x) for x in jax.tree.leaves(state.params)])
    assert np.isfinite(after).all() and np.abs(after - before).max() > 1e-5
    assert clipped > 0 and np.isfinite(kl) and kl != 0


def test_every_choice_of_a_loss_is_trained():
    """Checks that the losses above, and those of the other tests of runs, are all there are."""
    trained = {loss.policy for loss in LOSSES} | {"reinforce", "ppo"}
    assert trained == set(get_args(Policy))
    assert {loss.kl for loss in LOSSES} | {"none", "k1", "k2"} == set(get_args(Divergence))
    assert {loss.token_weights for loss in LOSSES} == {"", *token_weights.NAMES}


def own(rewards, k, where, classes):
    """Gives each answer the weight of its first response, for any k or mixture."""
    weights = pkpo.pkpo_weights(rewards, k, where=where)
    return jnp.take_along_axis(weights, classes, -1)


def test_a_run_with_a_mixture_and_an_own_function_of_answers(tmp_path, capsys):
    config = small_config()
    config.k = "blend(4, mixture(1: 1, 2: 1), 4)"
    config.estimator.name, config.estimator.classes = "tests.training.test_names:own", True
    config.train.steps, config.eval.every, config.log.report = 2, 4, False
    loop.train(config, tmp_path)
    config.train.steps = 4
    loop.train(config, tmp_path)
    lines = metrics.read(tmp_path)
    # The mean k of (1-s) 4 + s 1.5.
    assert [line.get("train/k") for line in lines] == [None, 4.0, 3.375, 2.75, 2.125]
    assert lines[3]["compilations"] == lines[4]["compilations"]
    capsys.readouterr()
    inspection.sample(tmp_path, inspection.Request(config, {}), count=1)
    # The last step mixes these three k.
    printed = capsys.readouterr().out
    assert all(f"k={k}" in printed for k in (4, 1, 2))


def test_every_name_is_documented():
    """Checks the pages for choosing an estimator or a loss, and the first screen of help(pkpo)."""
    losses = (pages.ROOT / "docs" / "training.md").read_text()
    names = {*get_args(Policy), *get_args(Divergence), *token_weights.NAMES} - {"none"}
    assert not [name for name in names if f"`{name}`" not in losses]
    page = (pages.ROOT / "docs" / "estimators.md").read_text()
    missing = [name for name in weights.NAMES if f"`{name}`" not in page]
    assert not missing
    assert not [name for name in pkpo.__all__ if name not in pkpo.__doc__]
