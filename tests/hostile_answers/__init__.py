"""Answers that attack their grader.

python -m tests.hostile_answers

prints the table. A worker of a real pool grades each answer, with a reward of 0 or none at all.
"""
