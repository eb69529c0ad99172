"""A sequence in parts, as a statement names only so many values, or a transaction takes so many rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def parts(of: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """The parts of a sequence, in order, each of `size` but for the last.

    >>> list(parts("abcde", 2))
    ['ab', 'cd', 'e']
    """
    return (of[start : start + size] for start in range(0, len(of), size))
