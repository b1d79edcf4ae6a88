"""The referee: methods of the field for pass@k, side by side; `python -m experiments.referee`."""
