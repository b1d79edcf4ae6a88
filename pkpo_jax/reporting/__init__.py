"""Reports of runs: a page, plots, tables, evaluations, and what compiling their steps needs."""
