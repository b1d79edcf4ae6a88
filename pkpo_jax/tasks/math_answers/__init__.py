"""Reads and compares answers of the task math: exact, in bounded time, without a clock.

`text` cleans, `tokens` and `reading` make a tree, `structure` gives it one shape, `monomials`,
`values` and `numerics` compute, `forms` tells what is left to compute, `comparison` decides.
"""

from pkpo_jax.tasks.math_answers.comparison import canonical, formulas, right
from pkpo_jax.tasks.math_answers.monomials import TooLarge
from pkpo_jax.tasks.math_answers.numerics import library

__all__ = ["TooLarge", "canonical", "formulas", "library", "right"]
