"""The estimators of `pkpo_jax` on NumPy arrays, in float64 and without JAX.

    from pkpo_jax.adapters import numpy as pkpo

Every name of `pkpo_jax` is here, with the same arguments and meaning, which its docstring there
gives. These are the differences:

  - Arguments are what `np.asarray` takes: NumPy arrays, lists, PyTorch tensors on the host.
  - Results are NumPy arrays in float64.
  - All values are known, so that every k out of range raises, and values other than 0 and 1 do.
  - `key`, the source of random groups and orders, is a `np.random.Generator` or a seed. The draws
    differ from JAX's.
  - The scores of `subset_weights` are computed from NumPy arrays.
"""

from pkpo_jax import schedules
from pkpo_jax.adapters.numpy.answers import (
    distinct_shapley_weights,
    distinct_weights,
    edas_advantages,
    poly_epo_weights,
    rarity_advantages,
    subset_weights,
    volume_weights,
)
from pkpo_jax.adapters.numpy.binary import (
    bbg_advantages,
    mahdavi_advantages,
    pass_at_k,
    pass_at_k_curve,
    pass_hat_k,
    pass_hat_k_curve,
    passk_training_advantages,
    posterior_advantages,
)
from pkpo_jax.adapters.numpy.ranks import (
    max_at_k,
    maxrl_advantages,
    off_policy_weights,
    pacevolve_advantages,
    pass_hat_k_weights,
    pkpo_weights,
    quantile_weights,
    shapley_weights,
    tailrl_advantages,
    tang_weights,
    top_mean_weights,
    trimmed_mean_weights,
)
from pkpo_jax.adapters.numpy.rewards import (
    dr_grpo_advantages,
    entropic_advantages,
    grpo_advantages,
    quantile_baseline_advantages,
    rloo_advantages,
    tail_extrapolated_weights,
)
from pkpo_jax.mixtures import Mixture

# A test checks that these are the names of pkpo_jax.__all__.
__all__ = [
    "Mixture",
    "bbg_advantages",
    "distinct_shapley_weights",
    "distinct_weights",
    "dr_grpo_advantages",
    "edas_advantages",
    "entropic_advantages",
    "grpo_advantages",
    "mahdavi_advantages",
    "max_at_k",
    "maxrl_advantages",
    "off_policy_weights",
    "pacevolve_advantages",
    "pass_at_k",
    "pass_at_k_curve",
    "pass_hat_k",
    "pass_hat_k_curve",
    "pass_hat_k_weights",
    "passk_training_advantages",
    "pkpo_weights",
    "poly_epo_weights",
    "posterior_advantages",
    "quantile_baseline_advantages",
    "quantile_weights",
    "rarity_advantages",
    "rloo_advantages",
    "schedules",
    "shapley_weights",
    "subset_weights",
    "tail_extrapolated_weights",
    "tailrl_advantages",
    "tang_weights",
    "top_mean_weights",
    "trimmed_mean_weights",
    "volume_weights",
]
