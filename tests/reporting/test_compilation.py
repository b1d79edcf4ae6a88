"""Tests of --mode=compile."""

import jax
import pytest

from pkpo_jax import parallel
from pkpo_jax.reporting import chips, compilation, costs, roofline
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import policies, programs


@pytest.mark.parametrize("topology", ["v5e", "v7:4x4", "v5e:4", "v5e:axb", "v5e:4x4x4", "v5p:4x4"])
def test_topologies_that_are_none(topology):
    with pytest.raises(config_lib.ConfigError, match=r"expected a chip \(v4, v5e, v5p, v6e\)"):
        chips.describe(topology)


@pytest.mark.parametrize("n", [3, 1000])
def test_a_decoded_token_costs_its_products(n):
    config = config_lib.default()
    config.model.size = "tiny"
    # The cache of so many tokens grows once. An eighth of 2,000 responses may go on alone.
    config.rollout.max_prompt, config.rollout.max_response = 16, 96
    devices = parallel.Jitted(parallel.make_mesh((1, 1, 1), jax.devices()[:1]))
    built = programs.Programs(config, devices, policies.vocabulary(config))
    work = compilation.compile_sampler(built, prompts=2, n=n).work
    # On a chip with endless memory bandwidth that makes one operation a second.
    chip = chips.Chip(memory=1, flops=1.0, bandwidth=float("inf"), ici=1.0)
    times = roofline.phases(
        {"sampling": work, "update": []}, chip, tokens=96, scorings=0, evaluations=0
    )
    c = built.model.config
    heads = c.num_heads + c.num_kv_heads
    layer = 2 * heads * c.head_dim * c.embed_dim + 3 * c.embed_dim * c.hidden_dim
    products = 2 * n * 2 * (c.num_layers * layer + c.num_embed * c.embed_dim)
    # The keys and values of the prompt and of all tokens are read at most.
    attention = 2 * n * 4 * c.num_layers * c.num_heads * c.head_dim * (16 + 96)
    token, prefill = times["a decoded token"], times["prefill"]
    assert products < token.products <= products + attention
    # A prompt is computed once for its responses, and without the head.
    prompts = 2 * 16 * 2 * c.num_layers * layer
    assert prompts < prefill.products < 1.2 * prompts
    sampling = prefill.products + 96 * token.products
    assert times["sampling"].products == pytest.approx(sampling)


def test_the_local_report(capsys):
    config = config_lib.default()
    config.train.prompts, config.rollout.max_response = 4, 8
    assert compilation.report(config, None)
    text = capsys.readouterr().out
    for row in (
        "evaluation",
        "arguments",
        "temporaries",
        "total",
        "matrix products",
        "compile time",
    ):
        assert row in text
    config.parallel.mode, config.parallel.mesh = "pmap", (1, 1, 1)
    with pytest.raises(config_lib.ConfigError, match=r"parallel.mode='pmap'"):
        compilation.report(config, None)


def test_a_topology_may_have_one_chip():
    pytest.importorskip("libtpu", reason="libtpu describes topologies")
    devices, chip = chips.describe("v5e:1x1")
    assert len(devices) == 1 and chip == chips.CHIPS["v5e"]


def test_what_does_not_fit_and_how_long_it_would_take_is_said(monkeypatch, capsys):
    transfer = costs.Transfer("all-gather", 5 * 2**30, 5 * 2**30, 2)
    work = [costs.Work(2, "jit(f)/while", 1e12, 1e9, (transfer,))]
    compiled = compilation.Compiled(2**30, 2**34, work, ["jit(f)/while"], 1.0)
    described = (jax.devices(), chips.CHIPS["v5e"])
    monkeypatch.setattr(chips, "describe", lambda _: described)
    monkeypatch.setattr(compilation, "compile_sampler", lambda *_: compiled)
    monkeypatch.setattr(compilation, "compile_update", lambda _: compiled)
    assert not compilation.report(config_lib.default(), "v5e:1x1")
    text = capsys.readouterr().out
    assert "DOES NOT FIT" in text
    # There are two products of 1 TFLOP, and twice 5 GiB are received.
    assert "2 TFLOP" in text and "10.00 GiB" in text
    assert "a decoded token" in text and "transfers" in text and "197 TFLOP/s" in text
    assert "The loop jit(f)/while has no end" in text


def test_what_xla_refuses_is_reported(monkeypatch, capsys):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory. Used 20G of 15.75G"
        )

    monkeypatch.setattr(compilation, "compile_sampler", refuse)
    assert not compilation.report(config_lib.default(), None)
    text = capsys.readouterr().out
    assert "Used 20G of 15.75G" in text and "DOES NOT FIT" in text
