"""The reference pages name everything that they promise: public names, settings, senders."""

import re
from pathlib import Path

from blacksmith_dagster import sources
from scripts.docs_docstrings import public_names

PROJECT = Path(__file__).resolve().parents[2]
REFERENCE = PROJECT / "docs" / "reference"
# How the package reads a variable: by its name in a literal, or by a field of the settings.
VARIABLE = re.compile(r"\b(?:BLACKSMITH|CONSUL|DAGSTER)_[A-Z_]*[A-Z]\b")
READ = re.compile(r"(?:environ|environment)(?:\.get\(|\[)\s*[\"'](\w+)[\"']")


def test_reference_documents_every_public_name() -> None:
    pages = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    assert len(public_names()) > 80
    assert [
        path
        for path in public_names().values()
        if path not in documented
        and path.rpartition(".")[0] not in documented  # a whole module
        and f"blacksmith_dagster.{path.rpartition('.')[2]}" not in documented
    ] == []


def test_settings_page_names_every_variable() -> None:
    code = "\n".join(path.read_text() for path in (PROJECT / "blacksmith_dagster").rglob("*.py"))
    variables = set(VARIABLE.findall(code)) | set(READ.findall(code))
    assert {"BLACKSMITH_HOME", "BLACKSMITH_WANDERER_URL", "CONSUL_CACERT", "USER"} <= variables
    page = (REFERENCE / "settings.md").read_text()
    assert sorted(variables - set(re.findall(r"\b[A-Z_]+\b", page))) == []
    assert sorted(set(VARIABLE.findall(page)) - variables) == []


def test_senders_page_names_every_source_of_a_sender() -> None:
    page = (REFERENCE / "senders.md").read_text()
    names = {name for name in sources.__all__ if name.endswith("Source")}
    assert set(re.findall(r"`(\w+Source)`", page)) == names - {"PostgresSource"}
