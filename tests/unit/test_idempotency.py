"""Which events of a commit are new, given the keys that are stored already."""

from msgspec.structs import replace

from blacksmith_dagster.errors import KeyReused
from blacksmith_dagster.store.idempotency import StoredKey, resolve
from blacksmith_dagster.store.records import NewEvent


def event(key: str | None, body: str = "x", ordinal: int = 0) -> NewEvent:
    digest = body.encode() if key else None
    return NewEvent("airport/departed", body, key=key, ordinal=ordinal, digest=digest)


def test_events_without_a_key_are_all_new() -> None:
    resolution = resolve([[event(None), event(None)], [event(None)]], {})
    assert resolution.slots == [[0, 1], [2]]
    assert len(resolution.new) == 3


def test_a_known_key_is_the_event_it_was() -> None:
    known = {("airport/departed", "a", 0): StoredKey(seq=42, digest=b"x")}
    resolution = resolve([[event("a"), event("b")]], known)
    assert resolution.results(["50"], str) == [["42", "50"]]
    assert resolution.claimed == {("airport/departed", "b", 0): 0}


def test_the_first_of_two_in_one_commit_wins() -> None:
    resolution = resolve([[event("a")], [event("a")], [event("a", "y")]], {})
    assert resolution.slots[:2] == [[0], [0]]
    assert isinstance(resolution.slots[2], KeyReused)
    assert len(resolution.new) == 1


def test_a_rejected_request_leaves_nothing_and_its_keys_are_free() -> None:
    known = {("airport/departed", "a", 0): StoredKey(seq=1, digest=b"other")}
    rejected, kept = [event("b"), event("a")], [event("b", "z")]
    resolution = resolve([rejected, kept], known)
    assert isinstance(resolution.slots[0], KeyReused)
    assert [new.payload for new in resolution.new] == ["z"]
    assert resolution.claimed == {("airport/departed", "b", 0): 0}
    assert not resolve([[*rejected, event("c")]], known).claimed


def test_a_key_twice_in_one_request_with_two_bodies_is_rejected() -> None:
    resolution = resolve([[event("a", "x"), event("a", "y")]], {})
    assert isinstance(resolution.slots[0], KeyReused)
    assert not resolution.new


def test_a_request_key_counts_with_the_place_in_the_request() -> None:
    resolution = resolve([[event("r", ordinal=0), event("r", ordinal=1)]], {})
    assert resolution.slots == [[0, 1]]


def test_a_child_points_to_the_number_or_the_place_of_its_parent() -> None:
    stored = StoredKey(seq=42, digest=b"x")
    known = {("airport/departed", "a", 0): stored}
    family = [event("a"), replace(event(None), parent=0), replace(event(None), parent=1)]
    resolution = resolve([[event(None)], family], known)
    assert resolution.slots == [[0], [stored, 1, 2]]
    assert resolution.parents == {1: stored, 2: 1}


def test_a_rejected_family_leaves_no_parents() -> None:
    family = [event("a"), replace(event(None), parent=0), event("a", "y")]
    resolution = resolve([family, [event(None), event(None)]], {})
    assert resolution.rejected
    assert resolution.parents == {}
