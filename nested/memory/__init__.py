"""Memories that learn while they read: each holds fast weights per sequence, started from a learned state."""
