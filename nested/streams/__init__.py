"""Streams of tasks: sources of data, and the ways to arrange them as experiences in an order."""
