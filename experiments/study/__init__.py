"""A test of the papers' claims: python -m experiments.study. RESULTS.md holds the results."""
