"""The order in which several processes take the test files."""

from pathlib import Path

from tests.support.ordering import alternated


def test_files_that_compute_alternate_with_files_that_wait() -> None:
    files = ["acceptance/a", "acceptance/b", "contract/c", "orchestration/d", "project/t"]
    files += ["unit/e", "unit/f"]
    order = alternated((Path(f"tests/{name}.py"), name) for name in files)
    assert " ".join(order) == (
        "project/t contract/c acceptance/a unit/e acceptance/b unit/f orchestration/d"
    )


def test_the_tests_of_a_file_stay_together_in_their_order() -> None:
    waiting, computing = Path("tests/unit/e.py"), Path("tests/acceptance/a.py")
    assert alternated([(waiting, 1), (computing, 2), (waiting, 3), (computing, 4)]) == [2, 4, 1, 3]
