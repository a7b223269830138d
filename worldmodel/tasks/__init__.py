"""Sequence tasks: what they are, the environment that shows them, and how a model is scored on them."""
