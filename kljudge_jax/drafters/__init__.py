"""What proposes tokens: a model, the text itself, the target's own layers."""
