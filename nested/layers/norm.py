"""The norm of a language model, RMSNorm (arXiv 1910.07467), with the constant of TTT-E2E (arXiv 2512.23675)."""

from torch import nn

EPS = 1e-6


def rms_norm(size: int) -> nn.RMSNorm:
    """Over the last axis, of so many entries, one scale per entry."""
    return nn.RMSNorm(size, eps=EPS)
