"""Every operation of the store in every order, against a model that keeps a state per job."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from blacksmith_dagster.errors import FencedOut, Gone, KeyReused
from blacksmith_dagster.pipeline.event import JobResult
from blacksmith_dagster.store import Store, open_store
from blacksmith_dagster.store.records import (
    Deviation,
    FencingToken,
    Lane,
    Load,
    LoadVerdict,
    NewEvent,
    NewJob,
    ReplayMode,
    ReplayRequest,
    SelectedJob,
    Window,
)
from tests.support import randomness
from tests.support.pipelines.store import FLIGHTS, app, departed, take_over
from tests.support.purging import index_time, purged

ATTEMPTS = 3
NEVER = 86_400.0  # a delay in seconds that no test outlives

AWAITING, EXECUTING, RETRYING, SUCCEEDED, DISCARDED = (
    "awaiting",
    "executing",
    "retrying",
    "succeeded",
    "discarded",
)


class StoreMachine(RuleBasedStateMachine):
    """The store, and a model: the state of each job that the test expects."""

    store: Store
    discarded_before: int
    succeeded_before: int

    def __init__(self) -> None:
        super().__init__()
        self.name = uuid4().hex
        self.states: dict[str, str] = {}
        self.keys: dict[str, tuple[str, bytes]] = {}
        self.token = take_over(self.store, "first")
        self._settle_what_earlier_runs_left()
        self.load: Load | None = None
        self.stale: list[tuple[FencingToken, Load | None]] = []
        self.holders = 0
        self.since = datetime.now(UTC)
        self.before: set[str] = set()

    @rule(
        requests=st.lists(
            st.lists(
                st.tuples(st.sampled_from([None, "a", "b", "c"]), st.integers(0, 1)),
                min_size=1,
                max_size=4,
            ),
            min_size=1,
            max_size=3,
        )
    )
    def ingest(self, requests: list[list[tuple[str | None, int]]]) -> None:
        """Several requests in one commit, with and without keys."""
        built = [
            [
                NewEvent(
                    departed.path,
                    str(body),
                    [NewJob(FLIGHTS)],
                    key=key and f"{key} of {self.name}",
                    digest=str(body).encode() if key else None,
                )
                for key, body in request
            ]
            for request in requests
        ]
        for request, result in zip(built, self.store.log.append(built), strict=True):
            if isinstance(result, KeyReused):
                assert self._conflicts(request)
                continue
            for event, event_id in zip(request, result, strict=True):
                if event.key is not None and event.key in self.keys:
                    assert self.keys[event.key] == (event_id, event.digest)
                    continue
                assert event_id not in self.states
                self.states[event_id] = AWAITING
                if event.key is not None and event.digest is not None:
                    self.keys[event.key] = (event_id, event.digest)

    def _conflicts(self, request: list[NewEvent]) -> bool:
        known = {key: digest for key, (_, digest) in self.keys.items()}
        for event in request:
            if event.key is None or event.digest is None:
                continue
            if known.setdefault(event.key, event.digest) != event.digest:
                return True
        return False

    @precondition(lambda self: self.load is None)
    @rule(limit=st.integers(1, 5))
    def claim(self, limit: int) -> None:
        """The next load has only waiting jobs; there is none if no jobs wait."""
        load = self.store.loads.claim(self.token, limit, ATTEMPTS)
        if load is None:
            assert not self._in(AWAITING)
            return
        assert 1 <= len(load.rows) <= limit
        assert [row.seq for row in load.rows] == sorted({row.seq for row in load.rows})
        assert 1 <= load.attempt <= ATTEMPTS
        for row in load.rows:
            assert self.states[row.id] == (AWAITING if load.first_claim else RETRYING)
            self.states[row.id] = EXECUTING
        self.load = load

    @precondition(lambda self: self.load is not None)
    @rule(
        verdicts=st.lists(
            st.sampled_from(["", "failed", "later", "discarded"]), min_size=5, max_size=5
        )
    )
    def record(self, verdicts: list[str]) -> None:
        """Each job has its verdict."""
        self._record(self._open(), verdicts)
        self.load = None

    def _record(self, load: Load, verdicts: list[str]) -> None:
        deviations = []
        for row, verdict in zip(load.rows, verdicts, strict=False):
            self.states[row.id] = SUCCEEDED
            if verdict == "discarded":
                deviations.append(Deviation(row.seq, JobResult.DISCARDED, "never"))
                self.states[row.id] = DISCARDED
            elif verdict:
                delay = NEVER if verdict == "later" else 0.0
                deviations.append(Deviation(row.seq, JobResult.FAILED, verdict, delay))
                self.states[row.id] = RETRYING
        self.store.loads.record(load, LoadVerdict(deviations))

    @precondition(lambda self: self.load is not None)
    @rule(isolated=st.booleans())
    def record_that_it_raised(self, isolated: bool) -> None:
        """All jobs fail together."""
        load = self._open()
        self.store.loads.record(
            load, LoadVerdict(raised="down", isolated=isolated and len(load.rows) > 1)
        )
        self._all(load, RETRYING)
        self.load = None

    @precondition(lambda self: self.load is not None)
    @rule()
    def abandon(self) -> None:
        """The load ran past its timeout."""
        load = self._open()
        self.store.loads.abandon(load, "too late")
        self._all(load, RETRYING)
        self.stale.append((self.token, load))
        self.load = None

    @precondition(lambda self: self.load is not None)
    @rule()
    def release(self) -> None:
        """The load was never started."""
        load = self._open()
        self.store.loads.release(load)
        self._all(load, RETRYING)
        self.stale.append((self.token, load))
        self.load = None

    @rule()
    def take_over(self) -> None:
        """Another process takes over, whether a load is open or not."""
        self.stale.append((self.token, self.load))
        if self.load is not None:
            self._all(self.load, RETRYING)
        self.load = None
        self.holders += 1
        self.token = take_over(self.store, f"holder {self.holders}")

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def come_back_late(self, data: st.DataObject) -> None:
        """Whatever a fenced-out process still tries is rejected and changes nothing."""
        token, load = data.draw(st.sampled_from(self.stale))
        if load is not None:
            with pytest.raises(FencedOut):
                self.store.loads.record(load, LoadVerdict())
        if token != self.token:
            with pytest.raises(FencedOut):
                self.store.loads.claim(token, 5, ATTEMPTS)

    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        """An operator discards jobs: those that wait for a retry go, the others stay."""
        if not self.states:
            return
        chosen = data.draw(st.lists(st.sampled_from(sorted(self.states)), min_size=1, max_size=4))
        token = take_over(self.store, "operator", Lane.DISCARD)
        expected = {event_id for event_id in chosen if self.states[event_id] == RETRYING}
        marked = self.store.loads.mark_for_discard(token, chosen, "not wanted")
        assert marked == len(expected)
        while load := self.store.loads.claim(token, 10, ATTEMPTS):
            assert load.discard_reason == "not wanted"
            gone = [Deviation(row.seq, JobResult.DISCARDED, "not wanted") for row in load.rows]
            self.store.loads.record(load, LoadVerdict(gone))
            self._all(load, DISCARDED)
            expected -= {row.id for row in load.rows}
        assert not expected

    @rule(
        mode=st.sampled_from(list(ReplayMode)),
        batch=st.integers(1, 4),
        verdicts=st.lists(st.sampled_from(["", "failed", "discarded"]), min_size=5, max_size=5),
    )
    def replay(self, mode: ReplayMode, batch: int, verdicts: list[str]) -> None:
        """Settled jobs run again, each once; pending jobs stay as they are."""
        token = take_over(self.store, "replay", Lane.REPLAY)
        request = ReplayRequest(self.since, datetime.now(UTC) + timedelta(days=1), (mode,))
        replay = self.store.replays.begin(token, request, [departed.path], None)
        selected: list[SelectedJob] = []
        while replay.planned_upto < replay.upto:
            window = Window(replay.planned_upto, replay.upto)
            page = self.store.replays.page(FLIGHTS, request, [departed.path], window)
            for event in page.candidates:
                state = self.states[event.id]
                pending = state in (AWAITING, EXECUTING, RETRYING)
                assert event.state == ("pending" if pending else state)
            part = [SelectedJob(event.seq, event.state) for event in page.candidates]
            part = [job for job in part if job.state != "pending"]
            replay = self.store.replays.plan(token, replay, page.upto, part, batch)
            selected += part
        wanted = {ReplayMode.MISSING: (), ReplayMode.FAILED: (DISCARDED,)}
        states = wanted.get(mode, (DISCARDED, SUCCEEDED))
        expected = {event_id for state in states for event_id in self._in(state)} - self.before
        assert len(selected) == len(expected)
        ran: set[str] = set()
        while load := self.store.loads.claim(token, 5, ATTEMPTS):
            ran |= {row.id for row in load.rows}
            self._record(load, verdicts)
        assert ran == expected
        assert self.store.replays.end(token, replay)

    @rule()
    def purge(self) -> None:
        """Settled jobs go, and are counted as before; pending jobs stay."""
        index_time(self.store)
        assert purged(self.store) >= len(self._in(SUCCEEDED) | self._in(DISCARDED))
        for event in self._in(SUCCEEDED) | self._in(DISCARDED):
            with pytest.raises(Gone):
                self.store.log.event(event)
        self.succeeded_before += len(self._in(SUCCEEDED))
        self.discarded_before = 0
        pending = (AWAITING, EXECUTING, RETRYING)
        self.states = {event: state for event, state in self.states.items() if state in pending}
        self.since, self.before = datetime.now(UTC), set(self.states)

    @rule()
    def maintain(self) -> None:
        """Maintenance changes no result."""
        self.store.maintain()

    @invariant()
    def counts_agree(self) -> None:
        """Every job is in one state, and the store counts as the model does."""
        counts = self.store.counts.of(FLIGHTS)
        assert counts.awaiting == len(self._in(AWAITING))
        assert counts.executing == len(self._in(EXECUTING))
        assert counts.retrying == len(self._in(RETRYING))
        assert counts.discarded - self.discarded_before == len(self._in(DISCARDED))
        assert counts.succeeded - self.succeeded_before == len(self._in(SUCCEEDED))

    @invariant()
    def lists_and_histories_agree(self) -> None:
        """The lists by state and the last transition of each job say the same."""
        for state in (AWAITING, EXECUTING, RETRYING):
            assert {job.event_id for job in self.store.history.jobs(state, FLIGHTS)} == self._in(
                state
            )
        last = {AWAITING: {"awaiting"}, RETRYING: {"failed", "unknown", "awaiting"}}
        for event, state in list(self.states.items())[-3:]:
            history = self.store.history.transitions(event)
            assert history[-1].state in last.get(state, {state}), history
            assert (history[-1].due_at is not None) == (state == RETRYING)

    def _in(self, state: str) -> set[str]:
        return {event for event, own_state in self.states.items() if own_state == state}

    def _open(self) -> Load:
        assert self.load is not None
        return self.load

    def _all(self, load: Load, state: str) -> None:
        for row in load.rows:
            self.states[row.id] = state

    def _settle_what_earlier_runs_left(self) -> None:
        """Hypothesis runs many machines on one store: each must begin without waiting jobs."""
        while load := self.store.loads.claim_for_discard(self.token, "left over", 1000):
            self.store.loads.record(
                load,
                LoadVerdict(
                    [Deviation(row.seq, JobResult.DISCARDED, "left over") for row in load.rows]
                ),
            )
        counts = self.store.counts.of(FLIGHTS)
        self.discarded_before, self.succeeded_before = counts.discarded, counts.succeeded


@pytest.mark.soak
@pytest.mark.timeout(300 + 30 * randomness.ROUNDS)
def test_state_machine(store_url: str) -> None:
    opened = open_store(store_url, upgrade=True)
    opened.register(app)

    class Machine(StoreMachine):
        store = opened

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=randomness.rounds(10),
            phases=[Phase.generate, Phase.shrink],
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    opened.close()
