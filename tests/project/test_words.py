"""The words: names keep to the glossary, prose to plain English."""

import re
from pathlib import Path

import pytest

from scripts import check_words

PROJECT = Path(__file__).resolve().parents[2]

SAMPLES = [
    "How to mend it.",
    "It is read anew.",
    "They wait for ever.",
    "The value is no number.",
    "Who holds the lock loads.",
    "The lock of who listens.",
    "The store is asked for it.",
    "The purge goes on.",
    "It reads alone.",
    "Of events, the first is kept.",
    "It is for nobody else.",
    "It is tried again.",
    "The run is no more.",
    "The function is handed an event.",
    "For want of data it waits.",
    "A wake-up is lost.",
    "It was condemned.",
    "A door of the source.",
]


def test_glossary_words_are_used() -> None:
    code = [path for path in check_words.checked_files() if path.suffix != ".md"]
    assert [finding for path in code for finding in check_words.identifier_findings(path)] == []

    written = "\n".join(
        path.read_text().lower().replace("_", " ")
        for folder in ("blacksmith_dagster", "docs")
        for path in (PROJECT / folder).rglob("*")
        if path.suffix in {".py", ".sql", ".md"} and path.name != "glossary.md"
    )
    glossary = (PROJECT / "docs/glossary.md").read_text()
    terms = [
        term
        for row in re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE)
        for term in re.split(r",| \(.*\)", row.removeprefix("to "))
        if term.strip() not in {"", "word", "state", "---"}
    ]
    assert len(terms) > 50
    assert [term for term in terms if term.strip().lower() not in written] == []


def test_prose_has_no_rejected_words() -> None:
    assert check_words.findings(check_words.checked_files()) == []


@pytest.mark.parametrize("sample", SAMPLES)
def test_rejected_words_are_found_in_comments_strings_and_documents(
    sample: str, tmp_path: Path
) -> None:
    code, document = tmp_path / "code.py", tmp_path / "document.md"
    code.write_text(f'"""{sample}"""\n\n# {sample}\nMESSAGE = f"{sample} {{1}}"\n')
    document.write_text(f"{sample}\n\n```\n{sample}\n```\n")
    lines = [finding.line for finding in check_words.prose_findings(code)]
    assert set(lines) == {1, 3, 4}
    assert {finding.line for finding in check_words.prose_findings(document)} == {1}


@pytest.mark.parametrize(
    "line",
    [
        "door = 1",
        "def knock(doors): ...",
        "class OpenDoor: ...",
        "for each in []: ...",
        "x.gate = 1",
    ],
)
def test_rejected_names_are_found_wherever_they_are_bound(line: str, tmp_path: Path) -> None:
    code = tmp_path / "code.py"
    code.write_text(f"{line}\n")
    assert [finding.line for finding in check_words.identifier_findings(code)] == [1]


def test_rejected_names_are_found_in_sql(tmp_path: Path) -> None:
    script = tmp_path / "code.sql"
    script.write_text("create table jobs (seq bigint);\nselect strikes from open_doors;\n")
    found = list(check_words.identifier_findings(script))
    assert [(finding.line, finding.found) for finding in found] == [
        (2, "strikes"),
        (2, "open_doors"),
    ]
