"""Sequence tasks made from a seed: plain data, with a target for each position and nothing to download."""
