"""Training: configs, losses, the update step, evaluation and the loop around them."""
