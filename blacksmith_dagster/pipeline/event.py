"""What happened (`Event`), what is loaded of it (`Job`), and the jobs of one load (`Batch`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import msgspec

from blacksmith_dagster.errors import DeclarationError, UsageError, ValidationError
from blacksmith_dagster.pipeline.model import to_builtins
from blacksmith_dagster.pipeline.validation import Duration, duration

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_PANDAS_TYPES = (bytes, datetime, date, time, timedelta, Decimal)


class Event(msgspec.Struct, Generic[T_co], frozen=True):
    """One thing that happened.

    An extract function returns it; the store adds `id` and `received_at`.

    - `data`: anything that msgspec can write as JSON: a Struct, a dataclass, a dict, a list, ...
    - `key`: the idempotency key, 512 characters at most. A key that the same source event had within 7
      days is the same event and gets its id; with other data it is rejected. The default is the
      request's `Idempotency-Key` with the event's place in the request.
    - `sent_at`: when it happened at the sender, with a time zone.
    - `context`: its circumstances (user agent, library, campaign): a dict of JSON values.
    - `version`: the version of the source's API.
    - `id`, `received_at`: set by the store; `None` until the event is stored.
    - `parent`: the id of the event that this one was made from.
    - `children`: events of other types of the same source that came with it, made by
      `SourceEvent.of`. They are stored with it, get their own jobs, and have it as their parent. A
      stored event has none here.

    >>> Event({"flight": 1545}, key="UA1545").key
    'UA1545'
    """

    data: T_co
    key: str | None = None
    sent_at: datetime | None = None
    context: Mapping[str, Any] = _NOTHING
    version: str | None = None
    id: str | None = None
    received_at: datetime | None = None
    parent: str | None = None
    children: Sequence[TypedEvent] = ()


class TypedEvent(msgspec.Struct, frozen=True):
    """An event with its type, the path of its source event; made by `SourceEvent.of`."""

    event_type: str
    event: Event[Any]


class InvalidItem(msgspec.Struct, frozen=True):
    """An item of a batch that does not fit, returned by a webhook's function in the item's place.

    With `on_invalid="quarantine"` it goes to quarantine and the other items are ingested; else `error`
    rejects the request.

    - `body`: a request's body with only this item, to be retried from quarantine.
    """

    body: bytes
    error: ValidationError


class Cause(msgspec.Struct, frozen=True):
    """Why the job of an outcome exists: what became of the job that it came from.

    - `outcome`: 'succeeded', 'failed' or 'discarded'.
    - `error`: the reason, `None` if it succeeded.
    - `attempts`: how many attempts the job had.
    - `load_id`: the load that decided it.
    - `at`: when that was.
    """

    outcome: str
    error: str | None
    attempts: int
    load_id: int
    at: datetime


class Job(msgspec.Struct, Generic[T_co], frozen=True):
    """One event to be loaded by one destination event.

    - `data`: the event's data, or what the flow's `transform` returned.
    - `event`: the stored event, with its id, times, context and version.
    - `key`: the same at every attempt: send it along so that the destination recognizes a repetition.
    - `attempt`: 1 for the first.
    - `cause`: for the job of an outcome, what became of the job before it.
    """

    data: T_co
    event: Event[Any]
    key: str
    attempt: int
    cause: Cause | None = None


class JobResult(Enum):
    """What becomes of a job in a load."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    DISCARDED = "discarded"


class JobVerdict(msgspec.Struct, frozen=True):
    """What a destination decided about one job.

    `reason` is empty for a success. `retry_after` overrides the delay of the retry policy.
    """

    result: JobResult
    reason: str = ""
    retry_after: timedelta | None = None


class Batch(Generic[T]):
    """The jobs of one load: a sequence of `Job`, oldest first.

    `succeed`, `fail` and `discard` decide one job. A function that returns has succeeded with every
    undecided job; an exception fails them. `version` is the version of the destination's API that the
    event is declared for, `None` if it has none.

    >>> from blacksmith_dagster import Event
    >>> job = Job({"n": 1}, Event({"n": 1}), "k", 1)
    >>> batch = Batch("warehouse/flights", [job])
    >>> batch.fail(job, "no such airport")
    >>> batch.to_pandas()["n"].tolist()
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

    def fail(self, job: Job[T], reason: str, *, retry_after: Duration | None = None) -> None:
        """This job is not loaded. It is retried, until its attempts are used up.

        `retry_after` is a duration, as text or as a `timedelta`, and may be 0; by default the delay of
        the retry policy.

        Raises `UsageError` for a `retry_after` that is not a duration.
        """
        delay = None
        if retry_after is not None:
            try:
                delay = duration(f"{self.path}: retry_after", retry_after, least=timedelta(0))
            except DeclarationError as error:
                raise UsageError(str(error)) from None
        self._decide(job, JobVerdict(JobResult.FAILED, _text(reason), delay))

    def discard(self, job: Job[T], reason: str) -> None:
        """This job can never be loaded: it is not retried."""
        self._decide(job, JobVerdict(JobResult.DISCARDED, _text(reason)))

    @property
    def verdicts(self) -> Mapping[str, JobVerdict]:
        """The verdicts so far, by the job's key."""
        return self._verdicts

    def to_pandas(self) -> pandas.DataFrame:
        """The jobs' data as a pandas DataFrame: one row per job, in the batch's order.

        Raises `ImportError` without the extra `pandas`.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError(
                "Batch.to_pandas() needs pandas; run `pip install 'blacksmith-dagster[pandas]'`"
            ) from error

        rows: Any = [to_builtins(job.data, _PANDAS_TYPES) for job in self._jobs]
        return pandas.DataFrame(rows)

    def _decide(self, job: Job[T], verdict: JobVerdict) -> None:
        if self._keys is None:
            self._keys = frozenset(job.key for job in self._jobs)
        if job.key not in self._keys:
            raise UsageError(
                f"{self.path}: job {job.key} is not in this batch; name one of its jobs"
            )
        self._verdicts[job.key] = verdict


def _text(reason: object) -> str:
    return str(reason) or "no reason was given"
