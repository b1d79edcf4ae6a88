"""The estimators outside of this package's trainer: on NumPy arrays, and inside other trainers.

`numpy` has every estimator for NumPy arrays, without JAX. `trl`, `verl`, `tunix` and `rllm` put an
estimator in the place of a trainer's advantages; each imports its trainer when it is called, and
nothing here imports JAX, so that an environment of PyTorch needs NumPy alone:

    pip install --no-deps pkpo_jax
"""
