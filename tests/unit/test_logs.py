"""Log lines in JSON, whatever they are made of."""

import json
import logging

import pytest

from blacksmith_dagster import redaction
from blacksmith_dagster.logs import JSONFormatter, _StandardError


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    monkeypatch.setattr(redaction, "_hidden", ())
    redaction.hide("s3cret-value")
    logger = logging.Logger("test")
    logger.addHandler(_StandardError())
    return logger


def test_a_lone_surrogate_is_escaped(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise ValueError("bad \ud800 of s3cret-value")
    except ValueError:
        log.exception("no line for \udfff")
    line = json.loads(capsys.readouterr().err)
    assert line["message"] == "no line for \\udfff"
    assert "ValueError: bad \\ud800 of ***" in line["error"]


def test_a_line_that_cannot_be_formatted_prints_none_of_its_arguments(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.error("%d rows of %s", "s3cret-value", "another")
    (text,) = capsys.readouterr().err.splitlines()
    assert json.loads(text)["message"].startswith("a log line cannot be written")
    assert "s3cret" not in text


def test_the_fields_of_a_line_are_its_own() -> None:
    record = logging.makeLogRecord({"msg": "loaded", "load": 7, "destination": "lake"})
    line = json.loads(JSONFormatter().format(record))
    assert (line["load"], line["destination"]) == (7, "lake")
