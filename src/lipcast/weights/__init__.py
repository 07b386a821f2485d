"""Checkpoint files: reading, checking and loading them."""
