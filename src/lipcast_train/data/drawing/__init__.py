"""Portraits drawn from signed distances, in batches of frames."""
