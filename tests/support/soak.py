"""How often tests of random faults repeat: a few times, or as often as `make soak` says."""

import os

ROUNDS = int(os.environ.get("BLACKSMITH_TEST_SOAK") or 0)
"""The rounds of `make soak`; 0 in `make test`."""


def rounds(usual: int) -> int:
    """How many rounds to run: `usual`, or those of `make soak`."""
    return ROUNDS or usual
