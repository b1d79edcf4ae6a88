"""The names of metrics in tables, in the terminal and on the page of a run."""

# The keys are those of metrics.jsonl without "train/" or "eval/".
LABELS = {
    "reward_mean": "mean reward",
    "majority": "majority vote",
    "mode_coverage": "share of the modes found",
    "distinct_answers": "distinct answers",
    "distinct_wrong": "distinct wrong answers",
    "entropy": "entropy per token, nats",
    "truncated": "responses cut off before their end",
    "response_length": "tokens per response",
    "wrong_format": "responses without an answer",
    "timeout": "grading timeouts",
    "error": "grading errors",
    "invalid": "responses that could not be graded",
    "skipped": "updates skipped because the loss or gradient was not finite",
    "dead_groups": "groups without gradient",
    "equal_groups": "zero-variance groups, whose rewards are all equal",
    "clip_fraction": "tokens whose importance ratio was clipped",
    "log_prob_gap_max": "largest difference between the log-probs of sampler and scorer",
}
