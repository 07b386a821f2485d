"""How many examples hypothesis draws.

They are the same in every run unless HYPOTHESIS_PROFILE says otherwise: `fixed` draws as many as a test
says, or 100; `quick`, which scripts/test takes, a quarter of them; `soak` others each time, and ten
times as many where a test sets no number of its own.
"""

from __future__ import annotations

import os

from hypothesis import settings

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fixed")
settings.register_profile("quick", max_examples=25, derandomize=True, deadline=None)
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("soak", max_examples=1000, deadline=None, print_blob=True)


def examples(most: int) -> int:
    """Return how many examples a test draws that draws `most` in a whole run."""
    return -(-most // 4) if PROFILE == "quick" else most
