"""Cron expressions and moments, for tests of schedules."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

NOW = datetime(2026, 3, 1, 12, 7, 30, tzinfo=UTC)

ACCEPTED = [
    "* * * * *",
    "*/5 * * * *",
    "0 3 * * 1-5",
    "0 3 * * mon-fri",
    "0 3 * * MON,WED",
    "15,45 */2 1 jan,jul *",
    "0 0 29 2 *",
    "0 0 L * *",
    "0 0 * * 7",
    "0 0 30 4 *",
    "@hourly",
    "@daily",
    "@midnight",
    "@weekly",
    "@monthly",
    "@yearly",
    "@annually",
]


def _values(low: int, high: int, names: str = "") -> st.SearchStrategy[str]:
    one = st.integers(low, high).map(str)
    if names:
        one = one | st.sampled_from(names.split())
    step = st.integers(1, high + 1).map(str)
    ranges = st.tuples(one, one).map("-".join)
    part = st.one_of(
        st.just("*"), one, ranges, step.map("*/{}".format), st.tuples(ranges, step).map("/".join)
    )
    return st.lists(part, min_size=1, max_size=3).map(",".join)


CRONS = st.tuples(
    _values(0, 60),
    _values(0, 24),
    _values(0, 32, "L"),
    _values(0, 13, "jan FEB dec"),
    _values(0, 8, "mon SUN"),
).map(" ".join)
NOWS = st.timedeltas(timedelta(0), timedelta(days=3650)).map(NOW.__add__)
