"""Training from a small pretrained Gemma: experiments.pretrained.fetch gets one."""
