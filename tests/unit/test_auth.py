"""Tokens, networks and CORS: which senders a source accepts."""

import base64
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner

from blacksmith_dagster import CORS, Auth, Bearer, DeclarationError, Secret, Source, WriteKey
from blacksmith_dagster.cli import main
from blacksmith_dagster.errors import MissingSecret, SettingsError, Unauthorized
from blacksmith_dagster.pipeline.access import hashed

NEW, OLD = "BLACKSMITH_TEST_NEW", "BLACKSMITH_TEST_OLD"
TOKEN = "hunter2-cAnAry"
BOTH = (Secret(NEW), Secret(OLD))


def admitted(auth: Auth, header: str | bytes | None) -> bool:
    raw = header.encode() if isinstance(header, str) else header
    try:
        auth.admit({} if raw is None else {b"authorization": raw})
    except Unauthorized as error:
        rejection = f"{error} {error.challenge}"
    else:
        return True
    assert TOKEN not in rejection
    return False


def basic(user: str, password: str = "") -> str:
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NEW, TOKEN)
    monkeypatch.delenv(OLD, raising=False)


def test_a_bearer_token_is_compared_as_it_was_sent() -> None:
    bearer = Bearer(Secret(NEW))
    for header in (f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN} "):
        assert admitted(bearer, header)
    for wrong in (None, "", TOKEN, "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x"):
        assert not admitted(bearer, wrong)
    assert not admitted(bearer, f"Bearer {TOKEN[:-1]}é".encode("latin-1"))


def test_a_write_key_is_a_user_without_a_password() -> None:
    key = WriteKey(Secret(NEW))
    assert admitted(key, basic(TOKEN))
    assert admitted(key, basic(TOKEN).replace("Basic", "basic"))
    wrong = [None, "", "Basic", "Basic !", f"Basic {TOKEN}", f"Bearer {TOKEN}", basic(TOKEN, "x")]
    for header in (*wrong, basic(""), basic(f"{TOKEN}x")):
        assert not admitted(key, header)


@pytest.mark.parametrize(
    ("kind", "shown"), [(Bearer, lambda token: f"Bearer {token}"), (WriteKey, basic)]
)
def test_two_rotating_secrets(kind: Any, shown: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    auth = kind(*BOTH)
    monkeypatch.setenv(OLD, "the one before")
    auth.check()
    assert admitted(auth, shown(TOKEN))
    assert admitted(auth, shown("the one before"))
    assert not admitted(auth, shown("another"))
    monkeypatch.delenv(OLD)  # out of use by now
    auth.check()
    assert admitted(auth, shown(TOKEN))
    assert not admitted(auth, shown("the one before"))
    monkeypatch.setenv(NEW, "")
    with pytest.raises(MissingSecret, match=NEW):
        auth.check()


def test_a_hash_stands_for_a_token_that_nobody_knows_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NEW, hashed(TOKEN))
    bearer = Bearer(*BOTH)
    bearer.check()
    assert admitted(bearer, f"Bearer {TOKEN}")
    assert not admitted(bearer, f"Bearer {hashed(TOKEN)}")
    for wrong in (hashed(TOKEN)[:-1], "sha256:", hashed(TOKEN) + "0", "sha256:" + 64 * "x"):
        monkeypatch.setenv(NEW, wrong)
        with pytest.raises(SettingsError, match="not a SHA-256"):
            bearer.check()


def test_keys_new_makes_a_key_with_its_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    said = [CliRunner().invoke(main, ["keys", "new"]).output.split() for _ in range(2)]
    (_, key, _, hash_), (_, other, _, _) = said
    assert key != other
    monkeypatch.setenv(NEW, hash_)
    Bearer(Secret(NEW)).check()
    assert admitted(Bearer(Secret(NEW)), f"Bearer {key}")
    assert not admitted(Bearer(Secret(NEW)), f"Bearer {other}")


@pytest.mark.parametrize("value", [f"{TOKEN}\n", f" {TOKEN}", f"a\x07{TOKEN}"])
def test_a_token_that_no_header_can_carry_is_reported_at_the_start(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OLD, value)
    for auth in (Bearer(*BOTH), WriteKey(*BOTH)):
        with pytest.raises(SettingsError, match=OLD) as raised:
            auth.check()
        assert TOKEN not in str(raised.value)


@pytest.mark.parametrize("kind", [Bearer, WriteKey])
def test_secrets_are_named(kind: Any) -> None:
    for given in ([], [TOKEN], [Secret(NEW), TOKEN], [None]):
        with pytest.raises(DeclarationError, match="takes a Secret") as raised:
            kind(*given)
        assert TOKEN not in str(raised.value)


def test_cors_and_what_becomes_of_invalid_data_are_declared() -> None:
    shop = CORS(origins=["https://shop.example", "http://127.0.0.1:8080", "http://[::1]:80"])
    source = Source("web", cors=shop, on_invalid="quarantine")
    inherits = source.accept("clicked")
    assert (inherits.cors, inherits.on_invalid) == (shop, "quarantine")
    own = source.accept("viewed", cors=CORS(["*"]), on_invalid="reject")
    assert (own.cors, own.on_invalid) == (CORS(["*"]), "reject")
    for origin in ("shop.example", "https://shop.example/", "https://Shop.example", "null", None):
        with pytest.raises(DeclarationError, match="not an origin"):
            CORS([origin])  # type: ignore[list-item]
    cors: Any = CORS
    wrongs: list[Any] = [[], "https://shop.example", None]
    for wrong in wrongs:
        with pytest.raises(DeclarationError, match="write a list"):
            cors(wrong)
    with pytest.raises(DeclarationError, match=r"CORS: max_age: .*of 0s at least"):
        cors(["*"], max_age=timedelta(-1))
    make: Any = Source
    for given, says in (
        ({"cors": "*"}, "CORS"),
        ({"on_invalid": "drop"}, "'reject' or 'quarantine'"),
    ):
        with pytest.raises(DeclarationError, match=says):
            make("web", **given)


def test_networks_are_declared() -> None:
    source = Source("crm", networks=["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"])
    own = source.accept("own", networks=["0.0.0.0/0", "::/0"])
    assert source.accept("user").networks == source.networks
    assert own.networks != source.networks
    for wrong in ("192.0.2.0/24", [], ["192.0.2.1/24"], ["crm.example"], [None], 7):
        given: Any = wrong
        with pytest.raises(DeclarationError, match="network"):
            Source("crm", networks=given)
