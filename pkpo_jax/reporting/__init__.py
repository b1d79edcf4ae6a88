"""What people read of a run: its page, plots, tables, evaluations, and what compiling it needs."""
