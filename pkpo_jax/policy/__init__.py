"""The Gemma-2 policy: network, tokenizers, sampling and scoring."""
