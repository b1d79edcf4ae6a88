"""The task code: programming problems with tests, and the sandbox that runs answers and tests."""

from pkpo_jax.tasks.code.task import PATIENCE as PATIENCE
from pkpo_jax.tasks.code.task import Code as Code
