"""Reads and compares answers of the task math: exact, in bounded time, without a clock."""

from pkpo_jax.tasks.math_answers.comparison import canonical, formulas, right
from pkpo_jax.tasks.math_answers.values import TooLarge, numerics

__all__ = ["TooLarge", "canonical", "formulas", "numerics", "right"]
