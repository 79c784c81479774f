"""Fine-tuning, the lower bound of every table."""

from nested.methods.method import Method


class Naive(Method):
    """Train on each experience in turn and do nothing against forgetting."""
