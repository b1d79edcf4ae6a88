import dataclasses
import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pkpo_jax.policy import sampling, scoring
from tests.policy import small

STOP = (1, 7, 8, 9)
# All tests share this function, so that each shape is traced only once.
score = jax.jit(scoring.score, static_argnums=0, static_argnames="head_chunk")


@functools.cache
def sampler(n=4, max_response=13):
    model, params = small.policy()
    f = jax.jit(partial(sampling.sample, model, n=n, max_response=max_response, stop_tokens=STOP))
    return model, params, partial(f, params)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_sampler_and_scorer_agree_on_every_token(temperature):
    model, params, sample = sampler()
    prompts, lengths = small.prompts()
    r = sample(prompts, lengths, jax.random.key(0), temperature)
    # Some responses end early, and some do not end.
    assert r.lengths.min() <= 2 and r.lengths.max() == 13
    for chunk in (1, 5, 64):
        log_probs, entropy = score(
            model, params, prompts, lengths, r.tokens, temperature, head_chunk=chunk
        )
        np.testing.assert_allclose(
            jnp.where(r.mask, log_probs, 0.0), r.log_probs, atol=1e-5, rtol=0
        )
        np.testing.assert_allclose(jnp.where(r.mask, entropy, 0.0), r.entropy, atol=1e-5, rtol=0)


def test_lengths_mask_and_ends():
    _, _, sample = sampler()
    r = jax.device_get(sample(*small.prompts(), jax.random.key(1), 1.0))
    for tokens, length, mask, finished in zip(
        r.tokens.reshape(-1, 13),
        r.lengths.ravel(),
        r.mask.reshape(-1, 13),
        r.finished.ravel(),
        strict=True,
    ):
        np.testing.assert_array_equal(mask, np.arange(13) < length)
        assert not np.isin(tokens[: length - 1], STOP).any()
        assert finished == (tokens[length - 1] in STOP)
        assert finished or length == 13
        assert (tokens[:length] != 0).all() and (tokens[:length] < 30).all()
        assert not tokens[length:].any()


def test_tokens_are_those_of_categorical():
    """Equal candidates are decided as `jnp.argmax` decides them."""
    model, params, sample = sampler()
    prompts, lengths = small.prompts(rows=1)
    r = sample(prompts, lengths, jax.random.key(3), 1.0)
    every = jnp.arange(30)[None, :, None]
    log_p = score(model, params, prompts, lengths, every)[0][0, :, 0]
    log_p = jnp.full(40, -1e30).at[1:30].set(log_p[1:])
    for i in range(4):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(3), 0), i)
        expected = jax.random.categorical(jax.random.fold_in(key, 0), log_p)
        assert r.tokens[0, i, 0] == expected
    x = jnp.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [-1.0, -3.0, -1.0]])
    np.testing.assert_array_equal(sampling._first_maximum(x), jnp.argmax(x, -1))


@pytest.mark.parametrize("head_rows", [1, 3])
def test_the_head_on_some_responses_at_a_time(head_rows):
    model, params, whole = sampler(max_response=5)
    f = partial(sampling.sample, model, n=4, max_response=5, stop_tokens=STOP)
    arguments = *small.prompts(), jax.random.key(0), 1.0
    parts = jax.jit(partial(f, head_rows=head_rows))(params, *arguments)
    expected = whole(*arguments)
    for name, x in parts._asdict().items():
        np.testing.assert_allclose(x, getattr(expected, name), atol=1e-6, err_msg=name)
    f = jax.make_jaxpr(partial(f, head_rows=head_rows))(params, *arguments)
    assert f"f32[6,{head_rows},40]" in str(f) and "f32[6,4,40]" not in str(f)


@pytest.fixture
def small_caches(monkeypatch):
    """Makes caches grow from 2 tokens on, so that short responses exercise what long ones do."""
    sizes = {9: [2, 5, 9], 13: [2, 4, 8, 13]}
    monkeypatch.setattr(sampling, "_cache_sizes", sizes.__getitem__)


ENDS = (1, *range(3, 16))


def assert_same_rollouts(found, expected):
    for name, x in found._asdict().items():
        if x.dtype == jnp.float32:
            np.testing.assert_allclose(x, getattr(expected, name), atol=2e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(x, getattr(expected, name), err_msg=name)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("stop", [STOP, ENDS])
def test_caches_that_grow_and_responses_that_go_on_alone(small_caches, compact, stop):
    model, params = small.policy()
    arguments = params, *small.prompts(), jax.random.key(0), 1.0
    f = partial(sampling.sample, model, n=4, max_response=13, stop_tokens=stop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_cache_sizes", lambda length: [length])
        expected = jax.jit(f)(*arguments)
    left = [int((expected.lengths > t).sum()) for t in (2, 4, 8)]
    # Of 24 responses, three go on without the others, if any number below that is left.
    assert left == ([21, 18, 13] if stop == STOP else [6, 3, 0])
    assert_same_rollouts(jax.jit(partial(f, compact=compact))(*arguments), expected)


@pytest.fixture
def loops(monkeypatch):
    """Runs loops and branches from Python, and lists the state of each step."""
    states = []

    def while_loop(condition, body, state):
        body = jax.jit(body)
        while condition(state):
            state = body(state)
            states.append(state)
        return state

    real = jax.lax.cond

    def cond(at, f, g, *args):
        # Branches inside the network stay in its compiled step.
        if isinstance(at, jax.core.Tracer):
            return real(at, f, g, *args)
        return f(*args) if at else g(*args)

    monkeypatch.setattr(jax.lax, "while_loop", while_loop)
    monkeypatch.setattr(jax.lax, "cond", cond)
    return states


def test_responses_that_are_left_go_on_in_smaller_and_smaller_batches(small_caches, loops):
    model, params = small.policy(dataclasses.replace(small.CONFIG, num_layers=2))
    arguments = params, *small.prompts(), jax.random.key(0), 1.0
    f = partial(sampling.sample, model, n=22, max_response=9, stop_tokens=tuple(range(3, 19)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "_cache_sizes", lambda length: [length])
        expected = f(*arguments, compact=True)
    # Short responses do not leave the batch.
    assert {s["last"].shape for s in loops} == {(6, 22)}
    loops.clear()
    assert_same_rollouts(f(*arguments, compact=True), expected)
    # An eighth of the 132 responses are sixteen, and a 64th are two.
    lengths = np.asarray(expected.lengths)
    left = [int((lengths > t).sum()) for t in range(lengths.max())]
    shapes = [(6, 22) if count > 16 else (16, 1) if count > 2 else (2, 1) for count in left]
    assert [s["last"].shape for s in loops] == shapes and len(set(shapes)) == 3
    # Those that leave the whole batch belong to several prompts, and end at different times.
    alone = lengths > shapes.index((16, 1))
    assert alone.any(1).sum() > 2 and len(set(lengths[alone])) > 2
    # The sixteen have two sizes of caches at most, and the two have one.
    room = [s["cache"][1].keys.shape[3] for s in loops]
    for t, (shape, size) in enumerate(zip(shapes, room, strict=True)):
        sizes = {(6, 22): [2, 5, 9], (16, 1): [2, 9], (2, 1): [9]}[shape]
        assert size == next(size for size in sizes if size > t)


def test_samples_have_the_scored_distribution():
    model, params, _ = sampler()
    prompts, lengths = small.prompts(rows=1)
    sample = jax.jit(partial(sampling.sample, model, n=20_000, max_response=1, stop_tokens=STOP))
    r = sample(params, prompts, lengths, jax.random.key(5), 1.3)
    every = jnp.arange(30)[None, :, None]
    log_p, _ = score(model, params, prompts, lengths, every, 1.3)
    p = np.exp(log_p[0, :, 0]) * (np.arange(30) != 0)
    np.testing.assert_allclose(p.sum(), 1.0, atol=1e-5)
    drawn = np.bincount(np.asarray(r.tokens).ravel(), minlength=30) / 20_000
    # Each frequency is within five standard errors of its probability.
    assert (np.abs(drawn - p) <= 5 * np.sqrt(p * (1 - p) / 20_000) + 1e-9).all()


def test_nucleus_sampling_draws_the_likeliest_tokens_alone():
    model, params, _ = sampler()
    prompts, lengths = small.prompts(rows=1)
    options = dict(n=20_000, max_response=1, stop_tokens=STOP)
    sample = jax.jit(partial(sampling.sample, model, top_p=0.6, **options))
    r = sample(params, prompts, lengths, jax.random.key(5), 1.0)
    every = jnp.arange(30)[None, :, None]
    log_p, _ = score(model, params, prompts, lengths, every, 1.0)
    p = np.exp(log_p[0, :, 0]) * (np.arange(30) != 0)
    order = np.argsort(-p)
    kept = order[: 1 + int((np.cumsum(p[order]) < 0.6).sum())]
    assert 1 < len(kept) < 29
    expected = np.zeros(30)
    expected[kept] = p[kept] / p[kept].sum()
    drawn = np.bincount(np.asarray(r.tokens).ravel(), minlength=30) / 20_000
    assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected * (1 - expected) / 20_000)).all()
    # The recorded log-probs are those of the policy without top-p.
    tokens = np.asarray(r.tokens).ravel()
    np.testing.assert_allclose(r.log_probs.ravel(), np.log(p[tokens]), atol=1e-5)


@partial(jax.jit, static_argnums=1)
def nucleus(log_p, top_p):
    """Returns which tokens are in the nucleus of [rows, V] log-probs."""
    tokens = jnp.broadcast_to(jnp.arange(log_p.shape[-1])[:, None], log_p.shape[::-1])
    return jax.vmap(lambda token: sampling._in_nucleus(log_p, token, top_p), out_axes=1)(tokens)


@pytest.mark.parametrize(
    ("p", "top_p", "kept"),
    [
        ([0.5, 0.3, 0.1, 0.1], 0.5, [0]),
        ([0.5, 0.3, 0.1, 0.1], 0.8, [0, 1]),
        ([0.5, 0.3, 0.1, 0.1], 0.81, [0, 1, 2]),
        ([0.1, 0.2, 0.3, 0.4], 0.9, [1, 2, 3]),
        ([0.25, 0.25, 0.25, 0.25], 0.5, [0, 1]),
        ([0.1, 0.3, 0.3, 0.3], 0.6, [1, 2]),
        ([0.2, 0.2, 0.4, 0.2], 0.41, [0, 2]),
        ([1.0, 0.0, 0.0, 0.0], 0.999, [0]),
        ([0.5, 0.3, 0.1, 0.1], 1e-9, [0]),
        ([0.4, 0.3, 0.2, 0.1], 0.99999, [0, 1, 2, 3]),
        ([1 / 3, 1 / 3, 1 / 3, 0.0], 2 / 3, [0, 1]),
    ],
)
def test_the_nucleus_is_the_smallest_set_of_its_mass(p, top_p, kept):
    for row in np.asarray(nucleus(jnp.log(jnp.array([p, p])), top_p)):
        assert np.flatnonzero(row).tolist() == kept


@pytest.mark.parametrize("transposed", [False, True])
def test_a_decoded_token_makes_no_array_as_large_as_a_matrix(transposed):
    """Checks in the compiled loop that no matrix is sliced out of a stack, cast or transposed."""
    config = dataclasses.replace(small.CONFIG, transpose_gating_einsum=transposed)
    model, params = small.policy(config)
    sample = jax.jit(partial(sampling.sample, model, n=1, max_response=4, stop_tokens=STOP))
    prompts, lengths = small.prompts(rows=1)
    text = sample.lower(params, prompts, lengths, jax.random.key(0), 1.0).compile().as_text()
    (loop,) = re.findall(r" while\(.*body=%([\w.\-]+).*op_name=\"jit\(sample\)/while\"", text)
    (body,) = re.findall(rf"^%{re.escape(loop)} .*?^\}}", text, re.S | re.M)
    made = re.findall(r"= f32\[([\d,]+)\]\S* ([\w\-]+)\(", body)
    smallest = min(x[0].size for x in jax.tree.leaves(params["layers"]) if x.ndim > 2)
    # These make no array.
    views = ("get-tuple-element", "parameter", "bitcast")
    made = [
        np.prod([int(axis) for axis in shape.split(",")]) for shape, op in made if op not in views
    ]
    assert len(made) > 50 and max(made) < smallest


def test_the_nucleus_is_what_sorting_gives():
    """Compares with a sum over tokens in the order of a stable sort, among many equal ones."""
    rng = np.random.default_rng(0)
    levels = rng.choice([0.5, 1.0, 1.0, 3.0, 40.0], (200, 300)) * rng.choice(
        [1, 1, 1.1], (200, 300)
    )
    p = levels / levels.sum(-1, keepdims=True)
    for top_p in (0.03, 0.37, 0.9, 0.999):
        log_p = jnp.log(jnp.float32(p))
        got = np.asarray(nucleus(log_p, top_p))
        for row, kept in zip(p.round(9), got, strict=True):
            order = np.argsort(-row, kind="stable")
            count = 1 + int((np.cumsum(row[order]) < top_p - 1e-6).sum())
            assert np.flatnonzero(kept).tolist() == sorted(order[:count])
        noisy = log_p + jax.random.gumbel(jax.random.key(1), log_p.shape)
        groups = [x.reshape(20, 10, 300) for x in (log_p, noisy)]
        token = sampling._draw_from_nucleus(*groups, top_p)
        expected = jnp.where(got, noisy, -jnp.inf).argmax(-1)
        np.testing.assert_array_equal(token.ravel(), expected)


def test_top_p_of_logits_that_are_not_finite_ends():
    log_p = jnp.full((2, 3, 5), jnp.nan)
    assert sampling._draw_from_nucleus(log_p, log_p, 0.5).shape == (2, 3)


def test_a_row_draws_the_same_whatever_the_batch_around_it():
    _, _, sample = sampler()
    prompts, lengths = small.prompts()
    whole = sample(prompts, lengths, jax.random.key(2), 1.0)
    rows = jnp.array([4, 1])
    part = sample(prompts[rows], lengths[rows], jax.random.key(2), 1.0, rows=rows)
    np.testing.assert_array_equal(part.tokens, whole.tokens[rows])
    other = sample(prompts, lengths, jax.random.key(3), 1.0)
    assert (other.tokens != whole.tokens).any()


def test_responses_of_a_group_differ():
    _, _, sample = sampler(n=6)
    r = sample(*small.prompts(), jax.random.key(2), 1.0)
    assert len({tuple(row) for row in np.asarray(r.tokens[1])}) > 3


def test_decoding_stops_once_every_response_has_ended(loops):
    model, params = small.policy()
    r = sampling.sample(
        model,
        params,
        *small.prompts(rows=2),
        jax.random.key(0),
        1.0,
        n=2,
        max_response=50,
        stop_tokens=tuple(range(1, 20)),
    )
    assert r.finished.all() and len(loops) == r.lengths.max() < 50


def test_temperature_is_traced():
    model, params = small.policy()
    f = jax.jit(partial(sampling.sample, model, n=2, max_response=3, stop_tokens=STOP))
    for temperature in (1.0, 0.5, 2.0):
        f(params, *small.prompts(), jax.random.key(0), temperature)
    assert f._cache_size() == 1


def test_temperature_0_takes_the_likeliest_token():
    model, params, sample = sampler()
    prompts, lengths = small.prompts()
    r = sample(prompts, lengths, jax.random.key(1), 0.0)
    log_p, entropy = score(model, params, prompts, lengths, r.tokens, 1.0)
    np.testing.assert_allclose(r.log_probs, jnp.where(r.mask, log_p, 0.0), atol=1e-5)
    np.testing.assert_allclose(r.entropy, jnp.where(r.mask, entropy, 0.0), atol=1e-5)
    # All responses of a group are equal, and no other first token is more likely.
    assert (np.asarray(r.tokens) == np.asarray(r.tokens)[:, :1]).all()
    every = jnp.broadcast_to(jnp.arange(1, 30)[None, :, None], (len(prompts), 29, 1))
    first, _ = score(model, params, prompts, lengths, every, 1.0)
    np.testing.assert_allclose(first[..., 0].max(1), r.log_probs[:, 0, 0], atol=1e-5)
