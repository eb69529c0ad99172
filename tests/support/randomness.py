"""What is random in tests: its seed, and how often it is repeated.

`make soak ROUNDS=... SEED=...` sets both, by BLACKSMITH_TEST_SOAK and BLACKSMITH_TEST_SEED.
"""

import os
import random

ROUNDS = int(os.environ.get("BLACKSMITH_TEST_SOAK") or 0)
"""The rounds of `make soak`; 0 in `make test`."""


def rounds(usual: int) -> int:
    """How many rounds to run: `usual`, or those of `make soak`."""
    return ROUNDS or usual


def new_seed() -> int:
    """The seed that the environment gives, or a random one; it is printed."""
    seed = int(os.environ.get("BLACKSMITH_TEST_SEED") or random.randrange(2**32))
    print(f"BLACKSMITH_TEST_SEED={seed}")
    return seed


def seeded() -> random.Random:
    """A generator with a `new_seed`."""
    return random.Random(new_seed())
