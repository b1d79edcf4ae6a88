"""Reads and compares answers of the task math: exactly, in bounded time, without a clock.

`symbols` and `text` clean an answer. `tokens`, `numerals` and `reading` parse it into a `tree`, and
`structure` unifies trees of the same meaning. `monomials`, `values` and `numerics` compute. `forms`
counts the operations that the answer leaves undone, `copies` looks for it in the question, and
`comparison` decides.
"""

from pkpo_jax.tasks.math_answers.comparison import canonical, right
from pkpo_jax.tasks.math_answers.copies import formulas
from pkpo_jax.tasks.math_answers.monomials import TooLarge
from pkpo_jax.tasks.math_answers.numerics import library

__all__ = ["TooLarge", "canonical", "formulas", "library", "right"]
