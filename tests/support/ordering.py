"""The order of test files when several processes run them, which take one file after another.

Files that mostly compute alternate with files that mostly wait, so that the processes need the cores
at different times. The unit tests, which take a moment each, come last: all processes end together.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_COMPUTING = ("project", "acceptance", "orchestration")  # type checkers, processes, Dagster


def alternated(items: Iterable[tuple[Path, T]]) -> Sequence[T]:
    """Tests in the order in which their files are to be run; each comes with its file.

    >>> alternated([(Path("acceptance/a.py"), 1), (Path("acceptance/b.py"), 2), (Path("unit/c.py"), 3)])
    [1, 3, 2]
    """
    files: dict[Path, list[T]] = {}
    for path, item in items:
        files.setdefault(path, []).append(item)
    computing = [path for folder in _COMPUTING for path in files if path.parent.name == folder]
    waiting = [path for path in files if path.parent.name not in _COMPUTING]
    order = chain.from_iterable(zip_longest(computing, waiting))
    return [item for path in order if path is not None for item in files[path]]
