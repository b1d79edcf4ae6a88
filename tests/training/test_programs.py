"""Tests that keys of the section `model` reach the compiled programs, by tracing these alone."""

import jax
import jax.numpy as jnp
import pytest

from pkpo_jax import parallel
from pkpo_jax.training import config as config_lib
from pkpo_jax.training import policies, programs

P, N, LENGTH, T = 4, 3, 20, 8


def make(**options):
    config = config_lib.default()
    config.model.size = "tiny"
    config.model.update(options)
    devices = parallel.Jitted(parallel.make_mesh((1, 1, 1)))
    return programs.Programs(config, devices, policies.vocabulary(config))


def integers(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def traced(program, built, last, *scalars):
    """Returns the equations of a program of (parameters, (prompts, lengths, last), scalars)."""
    batch = integers(P, LENGTH), integers(P), last
    return list(equations(jax.make_jaxpr(program)(built.abstract_params(), batch, scalars).jaxpr))


def scored(built):
    return traced(built.scorer, built, integers(P, N, T), 1.0)


def sampled(built):
    return traced(built.sampler(N), built, integers(P), jax.random.key(0), 0, 1.0)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def named(found, name):
    return [equation for equation in found if equation.primitive.name == name]


def dtypes(variables):
    return {x.aval.dtype.name for x in variables}


@pytest.mark.parametrize("unroll", [False, True])
def test_unroll_reaches_the_loop_over_layers(unroll):
    (loop,) = named(scored(make(unroll=unroll)), "scan")
    assert loop.params["length"] == 2
    assert loop.params["unroll"] == (2 if unroll else 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("program", [scored, sampled])
def test_matrices_are_cast_before_the_loops_that_read_them(program, dtype):
    # Each pass of a loop would read twice the bytes of float32 parameters, and cast them again.
    built = make(dtype=dtype)
    params = built.abstract_params()
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    found = program(built)
    # The layers of a prompt are a loop, and so are the steps of decoding.
    loops = named(found, "scan") + named(found, "while")
    assert len(loops) == (1 if program is scored else 2)
    layers = {x.size // 2 for x in jax.tree.leaves(params["layers"]) if x.ndim > 2}
    for loop in loops:
        # The steps of decoding read the parameters of single layers, and the loop those of both.
        count = 2 if loop.primitive.name == "scan" else 1
        read = [x for x in loop.invars if x.aval.size // count in layers]
        assert len(read) >= 4 and dtypes(read) == {dtype}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("program", [scored, sampled])
def test_the_head_multiplies_in_the_dtype_and_adds_in_float32(program, dtype):
    built = make(dtype=dtype)
    table = built.abstract_params()["embedder"]["input_embedding"].shape
    products = named(program(built), "dot_general")
    heads = [dot for dot in products if dot.invars[1].aval.shape == table]
    assert heads
    for head in heads:
        assert dtypes(head.invars) == {dtype} and dtypes(head.outvars) == {"float32"}
