"""Answers that attack their grader.

python -m tests.hostile_answers

prints the table: each is graded by a worker of a real pool, and gets a reward of 0, or none at all.
"""
