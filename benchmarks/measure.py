"""How benchmarks repeat, compare and print their figures."""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import psutil

T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """How much to measure: `rounds` per figure, `seconds` per run over HTTP, sizes times `scale`."""

    rounds: int = 5
    seconds: int = 30
    scale: float = 1.0

    def of(self, size: int) -> int:
        """A size in whole thousands."""
        return max(1, round(size * self.scale / 1000)) * 1000


QUICK = Effort(rounds=3, seconds=5, scale=0.1)


@dataclass(frozen=True)
class Figure:
    """One line of the table. `holds` is `None` if the figure has no bound."""

    what: str
    figure: str
    limit: str = ""
    ratio: str = ""
    bound: str = ""
    holds: bool | None = None


def alternate(rounds: int, *measures: Callable[[], Any]) -> list[list[Any]]:
    """Run each measure in turn, `rounds` times: other load on the machine then affects all of them.

    A measure returns a number, or a tuple that begins with one.
    """
    results: list[list[Any]] = [[] for _ in measures]
    for number in range(1, rounds + 1):
        for result, measure in zip(results, measures, strict=True):
            result.append(measure())
        last = [
            result[-1][0] if isinstance(result[-1], tuple) else result[-1] for result in results
        ]
        print(f"  round {number}: {', '.join(map(_number, last))}", file=sys.stderr)
    return results


def figure(
    what: str,
    measured: Sequence[float],
    unit: str,
    *,
    limits: Sequence[float] = (),
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """The median of what was measured, with the lowest and the highest, and that of its limit.

    The bound applies to the ratio of the two medians; without a limit, to the median itself.
    """
    value = median(measured) / median(limits) if limits else median(measured)
    sign, bound = ("≤", at_most) if at_least is None else ("≥", at_least)
    if bound is None:
        bounded, holds = "", None
    else:
        least = f"{bound:.2f} of the limit" if limits else f"{_number(bound)} {unit}"
        bounded, holds = f"{sign} {least}", value >= bound if sign == "≥" else value <= bound
    limit, ratio = (_shown(limits, unit), f"{value:.2f}") if limits else ("", "")
    return Figure(what, _shown(measured, unit), limit, ratio, bounded, holds)


def timed(call: Callable[[], T]) -> tuple[float, T]:
    """The seconds that a call takes, and its result."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def p99(figures: Sequence[float]) -> float:
    """The 99th percentile."""
    return sorted(figures)[len(figures) * 99 // 100]


def percent_of_core(process: psutil.Process, seconds: float) -> float:
    """The CPU time that a process uses in the next `seconds`."""
    before, began = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(seconds)
    return 100 * (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is removed at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="blacksmith-bench-") as folder:
        yield Path(folder)


def table(figures: Sequence[Figure]) -> str:
    """Format the figures as a Markdown table."""
    labels = {True: "yes", False: "**no**", None: ""}
    rows = [("what", "figure", "limit", "ratio", "bound", "holds"), ("---",) * 6]
    rows += [(f.what, f.figure, f.limit, f.ratio, f.bound, labels[f.holds]) for f in figures]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def machine() -> str:
    """Describe the machine."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores ({models[0] if models else platform.machine()}), "
        f"{gigabytes:.0f} GiB, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}"
    )


def _shown(figures: Sequence[float], unit: str) -> str:
    middle = f"{_number(median(figures))} {unit}"
    if len(figures) == 1:
        return middle
    return f"{middle} ({_number(min(figures))}-{_number(max(figures))})"


def _number(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
