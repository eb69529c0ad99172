"""A group commit gathers requests, and gives each request its own result."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest

from blacksmith_dagster.errors import (
    KeyReused,
    OutcomeUnknown,
    StoreError,
    TooManyRequests,
    Unavailable,
)
from blacksmith_dagster.ingest import group_commit
from blacksmith_dagster.ingest.group_commit import GroupCommit
from blacksmith_dagster.store import Store
from blacksmith_dagster.store.records import NewEvent, NewJob

Results = Callable[[Sequence[Sequence[NewEvent]]], list[Any]]


class Scripted:
    """A store that returns what the test sets, once the test lets it commit."""

    def __init__(self, results: Results) -> None:
        self.commits: list[int] = []
        self.asked = threading.Event()
        self.may_commit = threading.Event()
        self.may_commit.set()
        self._results = results
        self.log = self

    def append(self, requests: Sequence[Sequence[NewEvent]]) -> list[Any]:
        self.commits.append(len(requests))
        self.asked.set()
        assert self.may_commit.wait(10)
        return self._results(requests)


def ids(requests: Sequence[Sequence[NewEvent]]) -> list[Any]:
    return [[event.payload for event in request] for request in requests]


def events(*payloads: str) -> list[NewEvent]:
    return [NewEvent("a/b", payload) for payload in payloads]


async def gathered(
    store: Scripted, commits: GroupCommit, requests: list[list[NewEvent]]
) -> list[Any]:
    """Submit a request, and the others during its commit."""
    store.may_commit.clear()
    first, *others = requests
    futures = [commits.submit(first)]
    assert await asyncio.to_thread(store.asked.wait, 10)
    futures += [commits.submit(other) for other in others]
    store.may_commit.set()
    return await asyncio.gather(*futures, return_exceptions=True)


def run(results: Results, requests: list[list[NewEvent]]) -> tuple[list[Any], list[int]]:
    store = Scripted(results)

    async def main() -> list[Any]:
        commits = GroupCommit(cast(Store, store), 100)
        results = await gathered(store, commits, requests)
        await commits.stop()
        return results

    return asyncio.run(main()), store.commits


def test_what_gathers_during_a_commit_makes_the_next_one() -> None:
    results, commits = run(ids, [events(str(n), f"{n}'") for n in range(6)])
    assert results == [[str(n), f"{n}'"] for n in range(6)]
    assert commits == [1, 5]


def test_data_that_the_database_rejects_fails_alone() -> None:
    def refuse(requests: Sequence[Sequence[NewEvent]]) -> list[Any]:
        if any(event.payload == "bad" for request in requests for event in request):
            raise StoreError("refused")
        return ids(requests)

    results, commits = run(refuse, [events("1"), events("2"), events("bad"), events("3")])
    assert (results[:2], results[3]) == ([["1"], ["2"]], ["3"])
    assert isinstance(results[2], StoreError)
    assert commits == [1, 3, 1, 1, 1]


def test_commit_that_may_have_happened_is_never_tried_again() -> None:
    unknown = OutcomeUnknown("who knows")

    def fail(requests: Sequence[Sequence[NewEvent]]) -> list[Any]:
        if len(requests) > 1:
            raise unknown
        return ids(requests)

    results, commits = run(fail, [events("1"), events("2"), events("3")])
    assert results == [["1"], unknown, unknown]
    assert commits == [1, 2]


@pytest.mark.parametrize("failures", [1, 2])
def test_commit_that_has_not_happened_is_tried_once_more(failures: int) -> None:
    down = Unavailable("down")
    left = [down] * failures

    def fail(requests: Sequence[Sequence[NewEvent]]) -> list[Any]:
        if left:
            raise left.pop()
        return ids(requests)

    results, commits = run(fail, [events("1")])
    assert results == ([["1"]] if failures == 1 else [down])
    assert commits == [1, 1]


def test_reused_key_fails_its_request_alone() -> None:
    reused = KeyReused("again")
    results, _ = run(
        lambda requests: [reused if r[0].payload == "2" else [r[0].payload] for r in requests],
        [events("1"), events("2"), events("3")],
    )
    assert results == [["1"], reused, ["3"]]


def test_full_queue_rejects_but_never_the_first() -> None:
    store = Scripted(ids)

    async def main() -> None:
        commits = GroupCommit(cast(Store, store), 3)
        store.may_commit.clear()
        large = commits.submit(events("1", "2", "3", "4"))
        with pytest.raises(TooManyRequests):
            commits.submit(events("5"))
        store.may_commit.set()
        assert len(await large) == 4
        assert await commits.submit(events("5")) == ["5"]
        await commits.stop()

    asyncio.run(main())


def test_stop_commits_what_was_submitted() -> None:
    store = Scripted(ids)

    async def main() -> list[Any]:
        commits = GroupCommit(cast(Store, store), 100)
        futures = [commits.submit(events(str(n))) for n in range(50)]
        await commits.stop()
        return await asyncio.gather(*futures)

    assert asyncio.run(main()) == [[str(n)] for n in range(50)]
    assert sum(store.commits) == 50


def test_what_is_committed_is_published_and_nothing_else() -> None:
    def one_id_and_one_error(requests: Sequence[Sequence[NewEvent]]) -> list[Any]:
        return [["1"], KeyReused("again")] if len(requests) == 2 else [["0"]]

    def event(payload: str, *destinations: str) -> list[NewEvent]:
        return [NewEvent("a/b", payload, [NewJob(destination) for destination in destinations])]

    notified: list[str] = []
    store = Scripted(one_id_and_one_error)

    async def main() -> None:
        commits = GroupCommit(cast(Store, store), 100, notified.extend)
        requests = [event("0"), event("1", "lake/all", "pager/late"), event("2", "crm/people")]
        await gathered(store, commits, requests)
        await commits.stop()

    asyncio.run(main())
    assert notified == ["lake/all", "pager/late"]


def test_a_commit_that_hangs_is_no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> None:
        store = Scripted(ids)
        commits = GroupCommit(cast(Store, store), 10)
        store.may_commit.clear()
        stored = commits.submit(events("a"))
        assert await asyncio.to_thread(store.asked.wait, 10)
        assert commits.makes_progress
        with monkeypatch.context() as patched:
            patched.setattr(group_commit, "_LONGEST_COMMIT", 0.0)
            assert not commits.makes_progress
        store.may_commit.set()
        await stored
        assert commits.makes_progress
        await commits.stop()
        assert not commits.makes_progress

    asyncio.run(hang())
