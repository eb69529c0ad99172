"""A secret is read when it is needed, and shown nowhere."""

import copy
import dataclasses
import pickle
import sys
import threading
from typing import Any

import msgspec
import pytest

from blacksmith_dagster import Bearer, Destination, Secret, Source, redaction
from blacksmith_dagster.destinations import HTTPDestination, SQLDestination
from blacksmith_dagster.errors import MissingSecret, SettingsError
from blacksmith_dagster.redaction import clean, describe, traced
from tests.support import randomness

VARIABLE = "BLACKSMITH_TEST_SECRET"
VALUE = "hunter2-cAnAry"


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> Secret:
    """A secret that is not revealed yet, in a process that has revealed none."""
    monkeypatch.setattr(redaction, "_hidden", ())
    monkeypatch.setenv(VARIABLE, VALUE)
    return Secret(VARIABLE)


def test_it_is_read_when_it_is_revealed(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    assert secret.reveal() == VALUE
    monkeypatch.setenv(VARIABLE, "rotated")
    assert secret.reveal() == "rotated"


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_secret_is_named(
    secret: Secret, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(VARIABLE)
    else:
        monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(MissingSecret) as raised:
        secret.reveal()
    assert isinstance(raised.value, SettingsError)
    assert raised.value.name == VARIABLE
    assert VARIABLE in str(raised.value)
    assert "set it to the secret's value" in str(raised.value)


def test_a_declaration_needs_no_secret(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    departed = Source("airport", auth=Bearer(secret)).accept("departed")
    SQLDestination("warehouse", url=secret).table("flights", receives=departed)
    HTTPDestination("alerts", url=secret, headers={"X-Key": secret}).post("all", receives=departed)


def test_it_is_shown_nowhere(secret: Secret) -> None:
    secret.reveal()
    bearer = Bearer(secret)
    bearer.admit({b"authorization": f"Bearer {VALUE}".encode()})
    declared: list[Any] = [
        Source("airport", auth=bearer),
        SQLDestination("warehouse", url=secret),
        HTTPDestination("alerts", url=secret, headers={"X-Key": secret}),
        Destination("lake", connect=secret.reveal),
    ]
    shown = [
        *(f"{item} {item!r} {vars(item)}" for item in declared),
        f"{secret} {secret!r} {secret!s} {[secret]} {bearer}",
        str(dataclasses.asdict(secret)),
        str(dataclasses.asdict(bearer)),
        msgspec.json.encode([secret, bearer]).decode(),
        str(msgspec.to_builtins(bearer)),
        pickle.dumps([secret, bearer]).decode("latin-1"),
        repr(copy.deepcopy(bearer)),
    ]
    for text in shown:
        assert VALUE not in text
    assert f"{secret}" == f"Secret({VARIABLE!r})"


def test_a_revealed_secret_is_cut_out_of_errors(secret: Secret) -> None:
    url = f"postgresql://app:{VALUE}@db/events"
    assert VALUE in clean(url)  # nobody has revealed it: it is no secret that we know
    secret.reveal()
    assert clean(url) == "postgresql://app:***@db/events"
    assert describe(ConnectionError(f"no response from {url}")) == (
        "ConnectionError: no response from postgresql://app:***@db/events"
    )
    assert VALUE not in describe(KeyError(VALUE))
    assert VALUE not in clean("x" * 3995 + VALUE)  # where the text is cut
    assert VALUE[:3] not in clean("x" * 3995 + VALUE)


def test_a_revealed_secret_is_cut_out_of_tracebacks(secret: Secret) -> None:
    value = secret.reveal()
    try:
        try:
            raise KeyError(value)
        except KeyError as error:
            raise ConnectionError(f"no response for {value}") from error
    except ConnectionError as error:
        trace = traced(error)
    assert VALUE not in trace
    assert "KeyError: '***'" in trace
    assert trace.endswith("ConnectionError: no response for ***\n")


def test_a_secret_in_a_repr_is_found_too(secret: Secret, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "-----BEGIN KEY-----\nMII\\c'\"AnAry\n-----END KEY-----\n"
    monkeypatch.setenv(VARIABLE, key)
    secret.reveal()
    for error in (ValueError(key), KeyError(key), ValueError({"key": key}), ValueError([key, 1])):
        assert "***" in describe(error)
        assert "AnAry" not in describe(error)


def test_a_secret_that_is_a_part_of_another_leaves_nothing_of_it(
    secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = f"postgresql://app:{VALUE}@warehouse.internal/flights"
    monkeypatch.setenv("BLACKSMITH_TEST_WAREHOUSE", whole)
    secret.reveal()
    Secret("BLACKSMITH_TEST_WAREHOUSE").reveal()
    assert clean(f"no response from {whole} for {VALUE}") == "no response from *** for ***"


def test_a_short_secret_cuts_no_harmless_text(
    secret: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "abc")
    secret.reveal()
    assert clean("abcdef") == "abcdef"


def test_errors_are_cleaned_while_secrets_are_revealed() -> None:
    """The one happens in the threads of loads, the other at their beginnings."""
    chosen = randomness.seeded()
    ended = threading.Event()
    failed: list[RuntimeError] = []

    def cleaning() -> None:
        try:
            while not ended.is_set():
                clean("a harmless text")
        except RuntimeError as error:  # a set that has changed while it was gone through
            failed.append(error)

    threads = [threading.Thread(target=cleaning) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        redaction.hide(f"{chosen.getrandbits(64):x}")
    ended.set()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(redaction._hidden) == 300


def test_no_secret_is_lost_when_several_are_revealed_at_once() -> None:
    """Each destination reveals its own in a thread of its own."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    start = threading.Barrier(4)

    def revealing(name: int) -> None:
        start.wait()
        for number in range(100):
            redaction.hide(f"secret-{name}-{number}")

    threads = [threading.Thread(target=revealing, args=(name,)) for name in range(4)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(redaction._hidden) == 400


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:p%40ssw0rd@db/x",
        "amqp://p%40ssw0rd:p%40ssw0rd@mq",
        "kafka://u:p%40ssw0rd@k1,k2",
    ],
)
def test_the_password_of_a_revealed_url_is_masked_by_itself(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_hidden", ())
    monkeypatch.setenv("DB_URL", url)
    Secret("DB_URL").reveal()
    shown = clean(f"{url}: login failed for p@ssw0rd (p%40ssw0rd)")
    assert "ssw0rd" not in shown
    assert "login failed" in shown
    redaction.hide("http://[not a url")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NO_PROXY", "localhost,fd00::/8"),
        ("no_proxy", "2001:db8::/32"),
        ("NO_PROXY", "[::1]"),
        ("HTTP_PROXY", "http://proxy.example:port"),
        ("HTTPS_PROXY", "ftp://me:p4ssword@proxy.example"),
        ("ALL_PROXY", "socks5://me:p4ssword@proxy.example"),
        ("SSL_CERT_FILE", "/no/such/file"),
    ],
)
def test_unreadable_no_proxy_is_reported(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "SSL_CERT_FILE"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    HTTPDestination("alerts", url=Secret("ALERTS_URL"))
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=rf"environment variable {name} \(") as reported:
        HTTPDestination("alerts", url=Secret("ALERTS_URL"))
    assert "p4ssword" not in str(reported.value)
