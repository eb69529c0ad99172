"""The jobs of one load, and what the destination says of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from blacksmith_dagster.errors import UsageError
from blacksmith_dagster.pipeline.event import Job
from blacksmith_dagster.pipeline.model import to_builtins

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")

_KEPT_BY_PANDAS = (bytes, datetime, date, time, timedelta, Decimal)


class JobResult(Enum):
    """What becomes of a job in a load."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DISCARDED = "discarded"


class JobVerdict(msgspec.Struct, frozen=True):
    """What a destination decided about one job.

    `reason` is empty for a success. `retry_after` (seconds) overrides the schedule's gap of a failure.
    """

    result: JobResult
    reason: str = ""
    retry_after: float | None = None


class Batch(Generic[T]):
    """The jobs of one load: a sequence of `Job`, oldest first.

    A function that returns has succeeded with every job that it did not name. `succeed`, `fail`
    and `discard` decide one; an exception fails those undecided. `version` is the one of the
    destination's API that the event is declared for, `None` if it has none.

    >>> from blacksmith_dagster import Event
    >>> job = Job({"n": 1}, Event({"n": 1}), "k", 1)
    >>> batch = Batch("warehouse/flights", [job])
    >>> batch.fail(job, "no such airport")
    >>> batch.frame()["n"].tolist()
    [1]
    """

    def __init__(self, path: str, jobs: Sequence[Job[T]], version: str | None = None) -> None:
        self.path = path
        self.version = version
        self._jobs = jobs
        self._verdicts: dict[str, JobVerdict] = {}
        self._keys: frozenset[str] | None = None

    def __iter__(self) -> Iterator[Job[T]]:
        return iter(self._jobs)

    def __len__(self) -> int:
        return len(self._jobs)

    @overload
    def __getitem__(self, index: int) -> Job[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Job[T]]: ...
    def __getitem__(self, index: int | slice) -> Job[T] | Sequence[Job[T]]:
        return self._jobs[index]

    def succeed(self, job: Job[T]) -> None:
        """This job is loaded, even if the function raises later."""
        self._decide(job, JobVerdict(JobResult.SUCCEEDED))

    def fail(
        self, job: Job[T], reason: str, *, retry_after: float | timedelta | None = None
    ) -> None:
        """This job is not loaded. It is tried again, until its attempts are used up.

        `retry_after` is in seconds, or a `timedelta`; without it the schedule's gap is taken.

        Raises `UsageError` for a `retry_after` that is neither.
        """
        self._decide(job, JobVerdict(JobResult.FAILED, _text(reason), self._seconds(retry_after)))

    def discard(self, job: Job[T], reason: str) -> None:
        """This job can never be loaded: it is not tried again."""
        self._decide(job, JobVerdict(JobResult.DISCARDED, _text(reason)))

    @property
    def verdicts(self) -> Mapping[str, JobVerdict]:
        """The verdicts so far, by the job's key."""
        return self._verdicts

    def frame(self) -> pandas.DataFrame:
        """The jobs' data as a pandas DataFrame: a row a job, in the batch's order."""
        import pandas

        rows: Any = [to_builtins(job.data, _KEPT_BY_PANDAS) for job in self._jobs]
        return pandas.DataFrame(rows)

    def _seconds(self, asked: Any) -> float | None:
        if asked is None:
            return None
        if isinstance(asked, timedelta):
            return asked.total_seconds()
        try:
            # Any library's number will do. A header's text would too, until one holds a date.
            if not isinstance(asked, str | bytes):
                return float(asked)
        except (TypeError, ValueError, OverflowError):
            pass
        raise UsageError(
            f"{self.path}: retry_after={asked!r:.40} is not valid; give seconds as a number, "
            "or a timedelta"
        )

    def _decide(self, job: Job[T], verdict: JobVerdict) -> None:
        if self._keys is None:
            self._keys = frozenset(each.key for each in self._jobs)
        if job.key not in self._keys:
            raise UsageError(f"{self.path}: job {job.key} is not one of this batch's")
        self._verdicts[job.key] = verdict


def _text(reason: object) -> str:
    return str(reason) or "no reason was given"
