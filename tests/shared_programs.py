"""Shares traced programs within a process, since most of the time of a short run is tracing."""

from pkpo_jax.policy import gemma
from pkpo_jax.training import programs

# Two instances of `Programs` share these attributes if these sections of their configs are equal.
_SHARED = {
    ("model", "rollout", "parallel"): ("_samplers", "scorer", "_init_params", "_init_adapters"),
    ("model", "rollout", "parallel", "train"): ("supervised_update", "_create"),
    ("model", "rollout", "parallel", "train", "loss", "estimator"): ("update", "recipe"),
}


def share(patch):
    """Makes runs whose programs are equal use the same ones, until `patch` is undone.

    Args:
      patch: a `pytest.MonkeyPatch`.

    Returns:
      A dict of the programs made. Clear it to have programs traced and compiled again.
    """
    make, made = programs.Programs, {}

    def shared(config, devices, tokenizer):
        new, sections = make(config, devices, tokenizer), config.to_dict()
        # No program depends on the length of the run.
        del sections["train"]["steps"], sections["train"]["max_skipped"]
        words = tokenizer.vocab_size, tokenizer.stop_tokens
        size = gemma.SIZES[config.model.size.replace("auto", "tiny")]
        base = size, words, type(devices), devices.mesh
        for names, attributes in _SHARED.items():
            key = base, repr([sections[name] for name in names])
            old = made.setdefault(key, new)
            vars(new).update({name: vars(old)[name] for name in attributes})
        return new

    patch.setattr(programs, "Programs", shared)
    return made
