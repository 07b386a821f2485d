"""Adapters for other programs' interfaces. Each imports its host, and is imported by it alone."""
