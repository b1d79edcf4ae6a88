"""The task code: problems with tests, and the sandbox that answers and tests run in."""

from pkpo_jax.tasks.code.task import PATIENCE as PATIENCE
from pkpo_jax.tasks.code.task import Code as Code
