"""Continual-learning experiments built around nested learning. Importing this package imports no torch."""

__version__ = "0.1.0"
