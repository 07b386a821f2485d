"""Lanes, rings and sessions: the generation loop."""
