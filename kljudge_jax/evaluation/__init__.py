"""Rules beside each other on the same prompts, with their baselines and their uncertainty."""
