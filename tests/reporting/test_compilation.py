"""Tests of --mode=compile."""

import jax
import pytest

from pkpo_jax.reporting import chips, compilation, costs
from pkpo_jax.training import config as config_lib


@pytest.mark.parametrize("topology", ["v5e", "v7:4x4", "v5e:4", "v5e:axb", "v5e:4x4x4", "v5p:4x4"])
def test_topologies_that_are_none(topology):
    with pytest.raises(config_lib.ConfigError, match=r"expected a chip \(v4, v5e, v5p, v6e\)"):
        chips.describe(topology)


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
    # Two products of 1 TFLOP, and twice 5 GiB.
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
