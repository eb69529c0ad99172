"""How many jobs of a due job group run in its next load."""

from hypothesis import given
from hypothesis import strategies as st

from blacksmith_dagster.store.job_groups import Portion, WaitingGroup, can_join, portion

PLAIN = WaitingGroup(
    id=1,
    listing=None,
    seq_from=1,
    seq_to=100,
    jobs=100,
    attempts=1,
    lost_loads=0,
    raised_in=None,
    isolated=False,
    consecutive_failures=0,
)


def test_a_plain_group_runs_whole() -> None:
    assert portion(PLAIN, 1000, others_succeeded=True) == Portion(100, 0, 0)


def test_a_batch_smaller_than_the_group_splits_it() -> None:
    assert portion(PLAIN, 30, others_succeeded=False).jobs == 30


def test_a_group_that_raised_runs_whole_while_nothing_succeeds() -> None:
    raised = PLAIN._replace(raised_in=7)
    assert portion(raised, 1000, others_succeeded=False).jobs == 100
    assert portion(raised, 1000, others_succeeded=True).jobs == 50


def test_a_group_lost_three_times_is_halved_and_halved_again_at_one_more_lost_load() -> None:
    assert portion(PLAIN._replace(lost_loads=2), 1000, others_succeeded=False).jobs == 100
    lost = portion(PLAIN._replace(lost_loads=3), 1000, others_succeeded=False)
    assert lost == Portion(50, lost_loads=2, remainder_lost_loads=2)


def test_a_job_that_halving_isolates_has_three_lost_loads_of_its_own() -> None:
    three = PLAIN._replace(jobs=3, lost_loads=3)
    assert portion(three, 1000, others_succeeded=False) == Portion(
        2, lost_loads=2, remainder_lost_loads=0
    )
    assert (
        portion(PLAIN._replace(jobs=1, lost_loads=2), 1, others_succeeded=False).discard_reason
        is None
    )
    single = portion(PLAIN._replace(jobs=1, lost_loads=3), 1, others_succeeded=False)
    assert single.discard_reason == "its load ended without a result 3 times"


def test_jobs_are_isolated_until_ten_failed_in_a_row() -> None:
    isolated = PLAIN._replace(isolated=True, raised_in=7)
    assert portion(isolated._replace(consecutive_failures=9), 1000, others_succeeded=True).jobs == 1
    rest = portion(isolated._replace(consecutive_failures=10), 1000, others_succeeded=True)
    assert (rest.jobs, rest.discard_reason) == (
        100,
        "10 isolated jobs of its group failed in a row",
    )


@given(
    st.builds(
        WaitingGroup,
        id=st.just(1),
        listing=st.none() | st.just(1),
        seq_from=st.just(1),
        seq_to=st.just(10),
        jobs=st.integers(1, 2000),
        attempts=st.integers(0, 72),
        lost_loads=st.integers(0, 9),
        raised_in=st.none() | st.just(3),
        isolated=st.booleans(),
        consecutive_failures=st.integers(0, 12),
    ),
    st.integers(1, 2000),
    st.booleans(),
)
def test_some_jobs_are_always_taken_and_a_batch_is_never_discarded_for_its_lost_loads(
    waiting: WaitingGroup, limit: int, others_succeeded: bool
) -> None:
    part = portion(waiting, limit, others_succeeded)
    assert 1 <= part.jobs <= min(limit, waiting.jobs)
    assert part.lost_loads <= waiting.lost_loads
    if part.discard_reason and waiting.jobs > 1:
        assert waiting.isolated
        assert waiting.consecutive_failures >= 10
    if can_join(waiting):
        assert part == Portion(min(limit, waiting.jobs), 0, 0)
