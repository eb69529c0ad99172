"""How benchmarks repeat, compare and print their figures."""

import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median


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


def alternate(rounds: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Run each measure in turn, `rounds` times: other load on the machine then affects all of them."""
    results: list[list[float]] = [[] for _ in measures]
    for number in range(1, rounds + 1):
        for result, measure in zip(results, measures, strict=True):
            result.append(measure())
        print(f"  round {number}: {', '.join(_number(r[-1]) for r in results)}", file=sys.stderr)
    return results


def beside(
    what: str,
    figures: Sequence[float],
    limits: Sequence[float],
    unit: str,
    at_least: float | None = None,
) -> Figure:
    """The medians of a figure and its limit; the bound applies to their ratio."""
    ratio = median(figures) / median(limits)
    return Figure(
        what,
        shown(figures, unit),
        shown(limits, unit),
        f"{ratio:.2f}",
        "" if at_least is None else f"≥ {at_least:.2f} of the limit",
        None if at_least is None else ratio >= at_least,
    )


def at_least(what: str, figures: Sequence[float], bound: float, unit: str) -> Figure:
    """The median of a figure that must reach a bound."""
    bounded = f"≥ {_number(bound)} {unit}"
    return Figure(what, shown(figures, unit), bound=bounded, holds=median(figures) >= bound)


def at_most(what: str, figures: Sequence[float], bound: float, unit: str) -> Figure:
    """The median of a figure that must stay within a bound."""
    bounded = f"≤ {_number(bound)} {unit}"
    return Figure(what, shown(figures, unit), bound=bounded, holds=median(figures) <= bound)


def shown(figures: Sequence[float], unit: str) -> str:
    """Format the median, with the lowest and the highest."""
    if len(figures) == 1:
        return f"{_number(figures[0])} {unit}"
    low, high = _number(min(figures)), _number(max(figures))
    return f"{_number(median(figures))} {unit} ({low}-{high})"


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


def _number(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
