"""The NumPy path against the jnp kernel in float32 and against every subset in rationals."""

import inspect
import subprocess
import sys
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import pkpo_jax as pkpo
from pkpo_jax.adapters import numpy as on_numpy
from tests import reference

P, N = 5, 7


class Batch(NamedTuple):
    """Groups with ties, answers, masks and a k for each group, as NumPy arrays."""

    rewards: np.ndarray
    correct: np.ndarray
    classes: np.ndarray
    ratios: np.ndarray
    where: np.ndarray
    k: np.ndarray
    ks: np.ndarray
    embeddings: np.ndarray

    @property
    def less(self):
        """[P], a k below n."""
        return self.k % (N - 1) + 1

    @property
    def mixture(self):
        return pkpo.Mixture(self.ks, np.array([0.25, 1.5], np.float32))


CALLS = {
    **{
        baseline: lambda of, g, b=baseline: of.pkpo_weights(
            g.rewards, g.less if b in ("loo", "centered") else g.k, baseline=b, where=g.where
        )
        for baseline in ("none", "loo", "loo_minus_one", "centered")
    },
    "max_at_k": lambda of, g: of.max_at_k(g.rewards, g.k, g.where),
    "max_at_k of a mixture": lambda of, g: of.max_at_k(g.rewards, g.mixture),
    "mixture": lambda of, g: of.pkpo_weights(g.rewards, g.mixture, where=g.where),
    "no mask": lambda of, g: of.pkpo_weights(g.rewards, g.k),
    "pass_hat_k_weights": lambda of, g: of.pass_hat_k_weights(g.correct, g.k, where=g.where),
    "tang_weights": lambda of, g: of.tang_weights(g.rewards, g.where),
    "off_policy_weights": lambda of, g: of.off_policy_weights(
        g.rewards, g.k, g.ratios, where=g.where
    ),
    "quantile_weights": lambda of, g: of.quantile_weights(g.rewards, g.less, 0.3, g.where),
    "top_mean_weights": lambda of, g: of.top_mean_weights(g.rewards, g.less, 2, g.where),
    "trimmed_mean_weights": lambda of, g: of.trimmed_mean_weights(g.rewards, g.less, 0.3, g.where),
    "shapley_weights": lambda of, g: of.shapley_weights(g.rewards, g.where),
    "tailrl_advantages": lambda of, g: of.tailrl_advantages(g.rewards, g.where),
    "maxrl_advantages": lambda of, g: of.maxrl_advantages(g.correct, g.where),
    "pacevolve_advantages": lambda of, g: of.pacevolve_advantages(g.rewards, g.mixture, g.where),
    "pass_at_k": lambda of, g: of.pass_at_k(g.correct, g.k, g.where),
    "pass_at_k_curve": lambda of, g: of.pass_at_k_curve(g.correct, g.where),
    "pass_hat_k": lambda of, g: of.pass_hat_k(g.correct, g.k, g.where),
    "pass_hat_k_curve": lambda of, g: of.pass_hat_k_curve(g.correct, g.where),
    "mahdavi_advantages": lambda of, g: of.mahdavi_advantages(g.correct, 3 * g.k, g.where),
    "bbg_advantages": lambda of, g: of.bbg_advantages(
        g.correct, 3 * g.k, g.where, prior=(1.5, 2.0), threshold=0.02
    ),
    "posterior_advantages": lambda of, g: of.posterior_advantages(
        g.correct, 3 * g.k, g.ks[:, 0], 7 * g.less, g.where, prior=(0.5, 2.0)
    ),
    **{
        method: lambda of, g, m=method: of.passk_training_advantages(
            g.correct, g.k, method=m, entropy=g.ratios[:, 0], where=g.where
        )
        for method in ("full", "analytical", "exceeding", "combination", "adaptive")
    },
    "grpo_advantages": lambda of, g: of.grpo_advantages(g.rewards, g.where),
    "dr_grpo_advantages": lambda of, g: of.dr_grpo_advantages(g.rewards, g.where),
    "rloo_advantages": lambda of, g: of.rloo_advantages(g.rewards, g.where),
    "quantile_baseline_advantages": lambda of, g: of.quantile_baseline_advantages(
        g.rewards, 0.4, g.where
    ),
    "entropic_advantages": lambda of, g: of.entropic_advantages(g.rewards, g.where),
    "tail_extrapolated_weights": lambda of, g: of.tail_extrapolated_weights(
        g.rewards, 8 * g.k, g.where, share=0.4
    ),
    "edas_advantages": lambda of, g: of.edas_advantages(g.rewards, g.correct, g.classes, g.where),
    "rarity_advantages": lambda of, g: of.rarity_advantages(
        g.rewards, g.correct, g.classes, g.where
    ),
    "distinct_shapley_weights": lambda of, g: of.distinct_shapley_weights(
        g.correct, g.classes, g.where
    ),
    "distinct_weights": lambda of, g: of.distinct_weights(g.correct, g.classes, g.less, g.where),
    "poly_epo_weights": lambda of, g: of.poly_epo_weights(g.rewards, g.classes, g.less, g.where),
    "subset_weights": lambda of, g: of.subset_weights(
        lambda members: (members * g.rewards[:, None, :]).sum(-1) ** 2, N, g.less, g.where
    ),
    "volume_weights": lambda of, g: of.volume_weights(g.rewards, g.embeddings, g.where, delta=2.0),
}


def random_batch(seed):
    rng = np.random.default_rng(seed)
    # Quarters, which float32 holds exactly, and few enough of them for ties.
    rewards = rng.integers(-4, 5, (P, N)) / 4
    where = rng.random((P, N)) < rng.random((P, 1))
    where[0] = True
    return Batch(
        rewards.astype(np.float32),
        rng.integers(0, 2, (P, N)),
        rng.integers(0, 3, (P, N)),
        np.exp(rng.normal(size=(P, N)) / 4).astype(np.float32),
        where,
        rng.integers(1, N + 1, P),
        rng.integers(1, N + 1, (P, 2)),
        rng.normal(size=(P, N, 3)).astype(np.float32),
    )


@pytest.mark.parametrize("name", CALLS)
def test_it_agrees_with_the_jnp_kernel(name):
    call = CALLS[name]
    compiled = jax.jit(lambda g: call(pkpo, g))

    @hypothesis.given(st.integers(0, 2**32 - 1))
    @hypothesis.settings(max_examples=40)
    def agrees(seed):
        batch = random_batch(seed)
        ours, theirs = call(on_numpy, batch), np.asarray(compiled(jax.tree.map(jnp.asarray, batch)))
        assert ours.dtype == np.float64 and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-6, rtol=1e-6)

    agrees()


def test_it_has_the_names_and_arguments_of_the_package():
    assert on_numpy.__all__ == pkpo.__all__
    assert on_numpy.Mixture is pkpo.Mixture and on_numpy.schedules is pkpo.schedules
    for name in set(pkpo.__all__) - {"Mixture", "schedules"}:
        theirs, ours = (inspect.signature(getattr(of, name)) for of in (pkpo, on_numpy))
        signature = lambda s: [(p.name, p.kind, p.default) for p in s.parameters.values()]  # noqa: E731
        assert signature(ours) == signature(theirs), name


def exact(values):
    return np.array([[float(x) for x in row] for row in values])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_weights_are_those_of_every_subset_to_float64(n):
    rng = np.random.default_rng(n)
    groups = [[int(r) for r in rng.integers(-3, 3, n)] for _ in range(6)] + [[2] * n]
    right = [[int(r > 0) for r in group] for group in groups]
    ratios = [[float(r) for r in rng.integers(1, 5, n) / 2] for _ in groups]
    for k in range(1, n + 1):
        values = [float(reference.max_at_k(g, k)) for g in groups]
        np.testing.assert_allclose(on_numpy.max_at_k(groups, k), values, atol=1e-13)
        values = [float(reference.pass_at_k(g, k)) for g in right]
        np.testing.assert_allclose(on_numpy.pass_at_k(right, k), values, atol=1e-13)
        for method in ("full", "analytical", "exceeding", "combination"):
            ours = on_numpy.passk_training_advantages(right, k, method=method)
            expected = [reference.passk_training(g, k, method) for g in right]
            np.testing.assert_allclose(ours, expected, atol=1e-12, err_msg=method)
        for baseline in ("none", "loo", "loo_minus_one", "centered"):
            if n == 1 and baseline != "none":
                continue
            if k == n and baseline in ("loo", "centered"):
                with pytest.raises(ValueError, match=rf"1 <= k <= {n - 1} for groups of n={n}"):
                    on_numpy.pkpo_weights(groups, k, baseline=baseline)
                continue
            ours = on_numpy.pkpo_weights(groups, k, baseline=baseline)
            expected = exact(reference.pkpo_weights(g, k, baseline) for g in groups)
            np.testing.assert_allclose(ours, expected, atol=1e-13, err_msg=baseline)
        if n > 1:
            ours = on_numpy.off_policy_weights(groups, k, ratios)
            pairs = zip(groups, ratios, strict=True)
            expected = exact(reference.off_policy_weights(g, k, r) for g, r in pairs)
            np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_a_single_sample_without_others_has_no_weight():
    for weights in (
        on_numpy.pkpo_weights([3.0], 1),
        on_numpy.tang_weights([3.0]),
        on_numpy.rloo_advantages([3.0]),
        on_numpy.grpo_advantages([3.0]),
    ):
        assert weights.tolist() == [0.0]


@pytest.mark.parametrize("k", [1, 3, 512, 1023, 1024])
def test_large_groups_keep_float64(k):
    values = [int(v) for v in np.random.default_rng(k).integers(0, 2**20, 1024)]
    if k > 1:
        expected = reference.large_pkpo_weights(sorted(values), k, "loo_minus_one")
        ours = np.sort(on_numpy.pkpo_weights(values, k))
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-12 * max(expected))
    if k < 1024:
        ours = np.sort(on_numpy.pkpo_weights(values, k, baseline="centered"))
        expected = reference.large_pkpo_weights(sorted(values), k, "centered")
        np.testing.assert_allclose(ours, expected, atol=1e-11 * np.abs(expected).max())


def test_a_mask_makes_groups_of_their_own_size():
    batch = random_batch(3)
    sizes = batch.where.sum(-1)
    assert (batch.k > np.maximum(sizes, 1)).any() and ((batch.k > 1) & (batch.k <= sizes)).any()
    masked = on_numpy.pkpo_weights(batch.rewards, batch.k, where=batch.where)
    noise = np.where(batch.where, batch.rewards, np.nan)
    again = on_numpy.pkpo_weights(noise, batch.k, where=batch.where)
    for row, kept in enumerate(batch.where):
        if kept.any():
            alone = on_numpy.pkpo_weights(batch.rewards[row, kept], min(batch.k[row], sizes[row]))
            np.testing.assert_allclose(masked[row, kept], alone, atol=1e-15)
    assert not masked[~batch.where].any()
    np.testing.assert_array_equal(again, masked)


def test_random_groups_and_orders_have_the_expected_mean():
    """Compares draws with what they converge to, since JAX draws other numbers."""
    correct, k = np.array([1, 0, 0, 1, 0, 0, 0, 0]), 3
    many = np.broadcast_to(correct, (10_000, 8))
    drawn = on_numpy.passk_training_advantages(many, k, method="bootstrap", key=0)
    theirs = pkpo.passk_training_advantages(
        many[:4_000], k, method="bootstrap", key=jax.random.key(0)
    )
    np.testing.assert_allclose(drawn.mean(0), np.asarray(theirs).mean(0), atol=0.1)
    rewards, directions = np.array([1.0, 0.5, 2.0]), np.array([[1.0, 0.0], [1.0, 0.2], [0.3, 1.0]])
    all_orders = on_numpy.volume_weights(rewards, directions)
    some = on_numpy.volume_weights(
        rewards, directions, key=np.random.default_rng(0), permutations=20_000
    )
    np.testing.assert_allclose(some, all_orders, atol=0.01)
    np.testing.assert_allclose(some.sum(), all_orders.sum(), atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: on_numpy.pkpo_weights([0.0, 1.0], 3), ValueError, "k=3; expected 1 <= k <= 2"),
        (lambda: on_numpy.pkpo_weights([0.0, 1.0], 1.5), TypeError, "k has dtype float64"),
        (lambda: on_numpy.pkpo_weights(1.0, 1), ValueError, "rewards has shape"),
        (lambda: on_numpy.pkpo_weights([1.0, 2.0], 1, baseline="x"), ValueError, "baseline='x'"),
        (lambda: on_numpy.pkpo_weights([[1.0]] * 2, [1, 1, 1]), ValueError, "one k a prompt"),
        (lambda: on_numpy.pkpo_weights([1.0], 1, where=[1]), ValueError, "where is int64"),
        (lambda: on_numpy.pass_at_k([0.5, 1.0], 1), ValueError, "correct holds 0.5"),
        (lambda: on_numpy.distinct_weights([1, 0], [0.0, 1.0], 1), ValueError, "classes is float"),
        (lambda: on_numpy.max_at_k(["a", "b"], 1), ValueError, "expected real numbers"),
        (
            lambda: on_numpy.max_at_k([0.0, 1.0], pkpo.Mixture([1, 2], np.ones((3, 2)))),
            ValueError,
            r"weights of shape \(3, 2\); expected leading dimensions that broadcast against \(\)",
        ),
        (
            lambda: on_numpy.passk_training_advantages([1, 0], 1, method="bootstrap"),
            ValueError,
            "give key=",
        ),
        *(
            (
                lambda name=name: on_numpy.posterior_advantages([[1, 0]] * 2, 4, **{name: [1] * 3}),
                ValueError,
                rf"{name} has shape \(3,\); expected one that broadcasts against \(2,\)",
            )
            for name in ("right", "wrong")
        ),
    ],
)
def test_wrong_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


OUT_OF_RANGE = {
    "quantile_weights": [{"k": 1, "quantile": q} for q in (0.0, 1.5, -0.5)],
    "top_mean_weights": [{"k": 1, "top": top} for top in (0, 1.5)],
    "trimmed_mean_weights": [{"k": 1, "trim": trim} for trim in (-1, 0.5)],
    "quantile_baseline_advantages": [{"quantile": 40}, {"epsilon": -5.0}],
    "grpo_advantages": [{"epsilon": -5.0}],
    "entropic_advantages": [{"nats": 0.0}],
    "tail_extrapolated_weights": [{"k": 4, "share": 1.0}, {"k": 4, "share": 0}],
    "bbg_advantages": [{"k": 4, "prior": (1.0, -1.0)}, {"k": 4, "prior": (1.0,)}],
    "posterior_advantages": [
        *({"k": 4, "prior": (0.0, 1.0)}, {"k": 4, "right": -5}),
        *({"k": 4, "wrong": np.array(-1.0)}, {"k": 4, "right": [-3]}),
    ],
}


@pytest.mark.parametrize("of", [on_numpy, pkpo])
@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_options_out_of_range_are_named(name, of):
    for options in OUT_OF_RANGE[name]:
        option = list(options)[-1]
        with pytest.raises(
            ValueError, match=f"^{option}=.*; expected .* (above|at least|below|at most)"
        ):
            getattr(of, name)([1, 0], **options)


def test_integers_of_64_bits_are_no_equal_answers():
    classes = [7, 7 + 2**32, 2**40, 1]
    for name in ("distinct_weights", "distinct_shapley_weights"):
        k = {"k": 2} if name == "distinct_weights" else {}
        for given in (classes, np.array(classes)):
            theirs = getattr(pkpo, name)([1, 1, 0, 0], given, **k)
            np.testing.assert_allclose(getattr(on_numpy, name)([1, 1, 0, 0], given, **k), theirs)
        assert theirs[0] == theirs[1] > 0.3


def test_rewards_in_bfloat16_are_real_numbers():
    rewards = jnp.asarray([0.0, 4.0, 0.5, 0.25], jnp.bfloat16)
    for given in (rewards, np.asarray(rewards)):
        np.testing.assert_allclose(on_numpy.pkpo_weights(given, 2), pkpo.pkpo_weights(given, 2))


@pytest.mark.parametrize("of", [on_numpy, pkpo])
@pytest.mark.parametrize("k", [1, [1]])
def test_no_tail_is_extrapolated_to_one_sample(of, k):
    with pytest.raises(ValueError, match=r"k=.*1.*; expected 2 <= k for groups of n=4"):
        of.tail_extrapolated_weights([[0.0, 1.0, 2.0, 3.0]], k)


@pytest.mark.parametrize("of", [on_numpy, pkpo])
def test_a_reward_that_is_no_number_is_seen(of):
    assert np.isnan(of.entropic_advantages([0.0, np.nan, 2.0, 5.0])).all()


@pytest.mark.parametrize(("share", "n"), [(0.7, 45), (0.59, 50), (0.525, 60), (0.14, 75)])
def test_a_tail_has_the_same_samples_in_float32(share, n):
    rewards = np.arange(n) ** 2 / n**2
    ours, theirs = (
        of.tail_extrapolated_weights(rewards, 100, share=share) for of in (on_numpy, pkpo)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("name", ["distinct", "mahdavi", "bbg", "posterior"])
def test_large_groups_agree_to_less(name):
    n, rng = 512, np.random.default_rng(0)
    right = rng.integers(0, 2, (4, n))
    for k in (2, 64, n - 1):
        if name == "distinct":
            classes = rng.integers(0, 3, (4, n))
            ours, theirs = (of.distinct_weights(right, classes, k) for of in (on_numpy, pkpo))
        else:
            ours, theirs = (getattr(of, f"{name}_advantages")(right, k) for of in (on_numpy, pkpo))
        # The largest value is 1, or the scale of the others.
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, np.abs(ours).max()))


def test_it_needs_no_jax():
    program = """
import sys
import numpy
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("jax", "jaxlib", "torch", "trl", "verl", "tunix", "rllm"):
            raise ImportError(f"{name} is not needed")
sys.meta_path.insert(0, Refuse())
from pkpo_jax.adapters import rllm, trl, tunix, verl
from pkpo_jax.adapters import numpy as pkpo
mixture = pkpo.schedules.blend(2, 1, 10)(5)
print(pkpo.pkpo_weights([0.0, 4.0, 0.0, 0.0], k=2), pkpo.max_at_k([0.0, 3.0], mixture))
print([name for name in sys.modules if name.split(".")[0] in ("jax", "torch")])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines() == ["[0. 2. 0. 0.] 2.25", "[]"], result.stderr
