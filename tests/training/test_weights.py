"""Tests of the estimators of a config: their convention, and errors before anything compiles."""

import types
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pkpo_jax as pkpo
from pkpo_jax.estimators.passk_training import Method
from pkpo_jax.estimators.pkpo import Baseline
from pkpo_jax.tasks import Maze
from pkpo_jax.training import weights
from pkpo_jax.training.config import Estimator
from tests import reference
from tests.policy import small

REWARDS = jnp.array([[1.0, 0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
VALID = jnp.array([[True, True, True, False, True], [True] * 5])
CLASSES = jnp.array([[0, 1, 2, 0, 1], [0, 0, 2, 3, 0]])
ROWS, ENTROPY = jnp.array([6, 2]), jnp.array([0.5, 0.9])
EARLIER = jnp.array([3.0, 0.0]), jnp.array([1.0, 24.0])
EMBEDDINGS = jax.random.normal(jax.random.key(5), (2, 5, 3))


def weigh(k=2, rewards=REWARDS, valid=VALID, rows=ROWS, key=3, **estimator):
    key = jax.random.key(key)
    call = small.weigh(**estimator)
    options = dict(rows=rows, key=key, entropy=ENTROPY, classes=CLASSES[: len(rows)])
    options |= dict(embeddings=EMBEDDINGS[: len(rows)], earlier=EARLIER)
    return np.asarray(call(rewards, k, valid, **options))


def groups():
    """Yields the row, the valid positions and the valid rewards of each group."""
    for row, keep in enumerate(np.asarray(VALID)):
        yield row, keep, np.asarray(REWARDS, np.float64)[row][keep]


@pytest.mark.parametrize("baseline", get_args(Baseline))
def test_pkpo_is_the_sum_over_subsets(baseline):
    ours = weigh(baseline=baseline)
    for row, keep, rewards in groups():
        expected = [float(w) for w in reference.pkpo_weights(list(rewards), 2, baseline)]
        np.testing.assert_allclose(ours[row][keep], expected, atol=1e-6)
        assert (ours[row][~keep] == 0).all()


@pytest.mark.parametrize(
    ("name", "advantage"),
    [
        ("grpo", lambda r: (r - r.mean()) / r.std()),
        ("dr_grpo", lambda r: r - r.mean()),
        ("rloo", lambda r: (r - r.mean()) * len(r) / (len(r) - 1)),
        ("maxrl", lambda r: (r - r.mean()) / r.mean()),
    ],
)
def test_advantages_are_divided_by_the_size_of_their_group(name, advantage):
    ours = weigh(name=name, k=1)
    for row, keep, rewards in groups():
        np.testing.assert_allclose(ours[row][keep], advantage(rewards) / len(rewards), atol=1e-6)


def test_annealing_to_k_1_is_rloo():
    np.testing.assert_allclose(weigh(k=1), weigh(name="rloo", k=1), atol=1e-7)


def test_tang_and_mahdavi():
    everywhere = jnp.ones_like(VALID)
    np.testing.assert_allclose(
        weigh(name="tang", k=5, valid=everywhere), weigh(k=5, valid=everywhere), atol=1e-7
    )
    ours = weigh(name="mahdavi", k=3)
    for row, keep, r in groups():
        advantage = 3 * (1 - r.mean()) ** 2 * (r - r.mean()) * len(r) / (len(r) - 1)
        np.testing.assert_allclose(ours[row][keep], advantage / len(r), atol=1e-6)


@pytest.mark.parametrize("method", get_args(Method))
def test_pass_at_k_training(method):
    ours = weigh(name="passk_training", method=method)
    if method == "bootstrap":
        keys = [jax.random.fold_in(jax.random.key(3), row) for row in ROWS]
        rows = [
            pkpo.passk_training_advantages(
                REWARDS[i], 2, method=method, key=keys[i], where=VALID[i]
            )
            for i in range(2)
        ]
        advantages = np.stack(rows)
    else:
        advantages = pkpo.passk_training_advantages(
            REWARDS, 2, method=method, entropy=ENTROPY, where=VALID
        )
    np.testing.assert_allclose(ours, advantages / np.array([[4.0], [5.0]]), atol=1e-7)
    assert np.abs(ours).max() > 0.05


def test_off_policy_reads_the_ratios_of_the_responses():
    ratios = jnp.array([[0.5, 1.2, 0.9, 7.0, 1.5], [1.1, 0.8, 1.0, 2.0, 0.6]])
    call = small.weigh(name="off_policy")
    options = dict(rows=ROWS, key=jax.random.key(3), entropy=ENTROPY)
    ours = np.asarray(call(REWARDS, 3, VALID, ratios=ratios, **options))
    for row, keep, rewards in groups():
        expected = reference.off_policy_weights(
            [float(r) for r in rewards], 3, [float(x) for x in ratios[row][keep]]
        )
        np.testing.assert_allclose(ours[row][keep], [float(w) for w in expected], atol=1e-5)
    # Without ratios, the responses count as sampled by the policy itself.
    np.testing.assert_allclose(call(REWARDS, 3, VALID, **options), weigh(k=3), atol=1e-6)


def test_what_a_prompt_draws_does_not_depend_on_the_prompts_beside_it():
    together = weigh(name="passk_training", method="bootstrap")
    alone = weigh(
        name="passk_training",
        method="bootstrap",
        rewards=REWARDS[1:],
        valid=VALID[1:],
        rows=ROWS[1:],
    )
    np.testing.assert_array_equal(together[1:], alone)


def test_continuous_rewards_are_right_from_1_on_for_binary_estimators():
    rewards = jnp.array([[0.99, 0.2, 1.0, 3.0, 0.0], [0.5, 0.1, 1.0, 0.7, -1.0]])
    right = (rewards >= 1.0).astype(jnp.float32)
    for name in weights.BINARY:
        k = 1 if name in weights.WITHOUT_K else 2
        np.testing.assert_array_equal(
            weigh(name=name, k=k, rewards=rewards), weigh(name=name, k=k, rewards=right)
        )


def test_a_function_of_ones_own(monkeypatch):
    module = types.ModuleType("my_experiment")
    module.best = lambda rewards, k, where: jnp.where(where, rewards * k, jnp.nan)
    module.wrong = lambda rewards, k, where: rewards.sum()
    module.broken = lambda rewards, k: rewards
    monkeypatch.setitem(__import__("sys").modules, "my_experiment", module)
    ours = weigh(name="my_experiment:best", k=3)
    np.testing.assert_array_equal(ours, np.where(VALID, 3 * REWARDS, 0.0))
    # Advantages are averaged over the group, so they are n times as large as weights, which are
    # summed.
    mean = weigh(name="my_experiment:best", k=3, returns="advantages")
    np.testing.assert_allclose(mean * VALID.sum(-1, keepdims=True), ours, rtol=1e-6)
    for name, message in (
        ("my_experiment:wrong", r"it fails on \[2, 5\] rewards: ValueError: it gives \(\)"),
        ("my_experiment:broken", "TypeError: .*takes 2 positional arguments"),
        ("my_experiment:none", "has no attribute 'none'"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("gpro", "expected one of pkpo, off_policy, tang"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.check(Estimator(name), 5, [2])


DIRECT = {
    "shapley": (1, lambda: pkpo.shapley_weights(REWARDS, VALID)),
    "tailrl": (1, lambda: pkpo.tailrl_advantages(REWARDS, VALID)),
    "quantile": (3, lambda: pkpo.quantile_weights(REWARDS, 3, 0.75, VALID)),
    "top_mean": (3, lambda: pkpo.top_mean_weights(REWARDS, 3, 1, VALID)),
    "trimmed_mean": (3, lambda: pkpo.trimmed_mean_weights(REWARDS, 3, 0.4, VALID)),
    "pass_hat_k": (2, lambda: pkpo.pass_hat_k_weights(REWARDS, 2, where=VALID)),
    "distinct": (2, lambda: pkpo.distinct_weights(REWARDS, CLASSES, 2, VALID)),
    "poly_epo": (2, lambda: pkpo.poly_epo_weights(REWARDS, CLASSES, 2, VALID)),
    "distinct_shapley": (1, lambda: pkpo.distinct_shapley_weights(REWARDS, CLASSES, VALID)),
    "volume": (1, lambda: pkpo.volume_weights(REWARDS, jax.nn.one_hot(CLASSES, 5), VALID)),
    "tail_extrapolated": (32, lambda: pkpo.tail_extrapolated_weights(REWARDS, 32, VALID)),
    "entropic": (1, lambda: pkpo.entropic_advantages(REWARDS, VALID)),
    "quantile_baseline": (1, lambda: pkpo.quantile_baseline_advantages(REWARDS, 0.75, VALID)),
    "pacevolve": (3, lambda: pkpo.pacevolve_advantages(REWARDS, 3, VALID)),
    "bbg": (32, lambda: pkpo.bbg_advantages(REWARDS, 32, VALID)),
    "posterior": (
        32,
        lambda: pkpo.posterior_advantages(REWARDS, 32, *EARLIER, VALID, prior=(0.5, 0.5)),
    ),
}


@pytest.mark.parametrize("name", DIRECT)
def test_names_give_their_functions_in_the_convention_of_weights(name):
    k, call = DIRECT[name]
    ours = weigh(name=name, k=k, quantile=0.75, top=1, trim=0.4, prior=0.5)
    expected = np.asarray(call())
    if getattr(pkpo, f"{name}_advantages", None):
        expected = expected / np.asarray(VALID).sum(-1, keepdims=True)
    np.testing.assert_allclose(ours, expected, atol=1e-7)


@pytest.mark.parametrize("name", ["edas", "rarity"])
@pytest.mark.parametrize(("base", "k"), [("grpo", 1), ("pkpo", 1)])
def test_shaped_advantages_of_a_base(name, base, k):
    rewards = jnp.array([[1.0, 1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    ours = weigh(name=name, base=base, baseline="centered", k=k, rewards=rewards)
    sizes = np.asarray(VALID).sum(-1, keepdims=True)
    before = weigh(name=base, baseline="centered", k=k, rewards=rewards) * sizes
    shape = getattr(pkpo, f"{name}_advantages")
    np.testing.assert_allclose(ours * sizes, shape(before, rewards, CLASSES, VALID), atol=1e-6)
    assert np.abs(ours * sizes - before).max() > 0.01


def test_groups_above_twelve_sample_the_volume_by_prompt():
    rewards = jnp.tile(REWARDS, (1, 3))[:, :13]
    classes, valid = jnp.tile(CLASSES, (1, 3))[:, :13], jnp.ones((2, 13), bool)
    call = small.weigh(name="volume")
    options = dict(key=jax.random.key(0), entropy=ENTROPY)
    both = call(rewards, 1, valid, rows=ROWS, classes=classes, **options)
    alone = call(rewards[1:], 1, valid[1:], rows=ROWS[1:], classes=classes[1:], **options)
    np.testing.assert_allclose(both[1:], alone, atol=1e-6)
    # The values add up to the volume of all: the sum over answers of log(1 + their rewards).
    total = sum(np.log1p(float(rewards[1][classes[1] == c].sum())) for c in (0, 2, 3))
    assert float(both[1].sum()) == pytest.approx(total, rel=1e-4)


def test_right_responses_are_equal_by_mode_and_wrong_ones_by_answer():
    """Checks that the estimator of distinct answers counts what `eval/distinct_correct_2` does."""
    task, problem = Maze(), {"grid": "S.\n..\n.E"}
    walks = ["DDR", "DUDDR", "RDD", "LDD", "DDR", "LDD", "DDL"]
    rewards = np.array([task.grade(problem, walk) for walk in walks], np.float32)
    assert rewards.tolist() == [1, 1, 1, 0, 1, 0, 0]
    modes = weights.right_modes(task, problem, walks, rewards)
    assert modes == ["DDR", "DDR", "RDD", None, "DDR", None, None]
    classes = weights.answer_classes([[task.answer(walk) for walk in walks]], [modes])
    assert classes.tolist() == [[0, 0, 2, 3, 0, 3, 6]]
    options = dict(rows=jnp.arange(1), key=jax.random.key(0), entropy=jnp.zeros(1), classes=classes)
    ours = weights.make(Estimator("distinct"))(rewards[None], 2, rewards[None] >= 0, **options)
    names = [mode or walk for mode, walk in zip(modes, walks, strict=True)]
    exact = reference.subset_weights(
        lambda c: len({names[i] for i in c if rewards[i] >= 1.0}), len(walks), 2
    )
    np.testing.assert_allclose(ours[0], np.array(exact, float), atol=1e-6)


def test_answer_classes_and_own_functions_that_take_them(monkeypatch):
    module = types.ModuleType("my_answers")
    module.first = lambda rewards, k, where, classes: 1.0 * (classes == jnp.arange(5))
    monkeypatch.setitem(__import__("sys").modules, "my_answers", module)
    ours = weigh(name="my_answers:first", classes=True)
    np.testing.assert_array_equal(ours, VALID & (np.arange(5) == CLASSES))
    weights.check(Estimator("my_answers:first", classes=True), 5, [1])
    with pytest.raises(ValueError, match="missing 1 required positional argument"):
        weights.check(Estimator("my_answers:first"), 5, [1])
    assert weights.needs_classes(Estimator("my_answers:first", classes=True))
    assert not weights.needs_classes(Estimator("pkpo", classes=True))


def test_embeddings_are_directions_of_volume_or_given_to_own_functions(monkeypatch):
    lengths = jnp.linalg.norm(EMBEDDINGS, axis=-1, keepdims=True)
    expected = pkpo.volume_weights(REWARDS, EMBEDDINGS / lengths, VALID)
    np.testing.assert_allclose(weigh(name="volume", k=1, embeddings=True), expected, atol=1e-6)
    module = types.ModuleType("my_states")
    module.last = lambda rewards, k, where, states: states.sum(-1)
    module.both = lambda rewards, k, where, classes, states: classes * states.sum(-1)
    monkeypatch.setitem(__import__("sys").modules, "my_states", module)
    total = np.where(VALID, EMBEDDINGS.sum(-1), 0.0)
    for name, classes, factor in (("last", False, 1), ("both", True, CLASSES)):
        own = dict(name=f"my_states:{name}", classes=classes, embeddings=True)
        weights.check(Estimator(**own), 5, [1])
        np.testing.assert_allclose(weigh(**own), factor * total, rtol=1e-6)
        assert weights.needs_embeddings(Estimator(**own))
    assert weights.needs_classes(Estimator("volume"))
    assert not weights.needs_classes(Estimator("volume", embeddings=True))
    assert not weights.needs_embeddings(Estimator("pkpo", embeddings=True))


def test_without_earlier_visits_there_are_no_counts():
    call, options = small.weigh(name="posterior"), dict(rows=ROWS, key=None, entropy=ENTROPY)
    none = call(REWARDS, 32, VALID, **options)
    zeros = call(REWARDS, 32, VALID, earlier=(jnp.zeros(2), jnp.zeros(2)), **options)
    np.testing.assert_array_equal(none, zeros)
    assert np.abs(none - weigh(name="posterior", k=32)).max() > 0.1


@pytest.mark.parametrize(
    ("estimator", "ks", "message"),
    [
        (dict(name="edas", base="pkpo"), [2], "it changes nothing with estimator.base='pkpo'"),
        (dict(name="edas", base="grpo"), [2], "estimator.base='grpo': k=2, but it takes no k"),
        (dict(name="distinct"), [pkpo.Mixture((1, 2), (0.5, 0.5))], "but it takes one k"),
        (dict(name="volume"), [4], "k=4, but it takes no k"),
    ],
)
def test_what_an_estimator_cannot_serve_is_refused(estimator, ks, message):
    with pytest.raises(ValueError, match=message):
        weights.check(Estimator(**estimator), 8, ks)


def test_the_largest_k():
    for name, largest in (
        ("quantile", 7),
        ("pass_hat_k", 8),
        ("pacevolve", 8),
        ("posterior", np.inf),
    ):
        assert weights.largest_k(Estimator(name), 8) == largest
    assert weights.largest_k(Estimator("edas", base="pkpo", baseline="centered"), 8) == 7
