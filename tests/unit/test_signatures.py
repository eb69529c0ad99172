"""Signatures that a source accepts: of the senders' own libraries, and of their documentation."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from blacksmith_dagster import (
    DeclarationError,
    GitHubSignature,
    HMACSignature,
    Secret,
    SlackSignature,
    StandardWebhooksSignature,
    StripeSignature,
)
from blacksmith_dagster.errors import MissingSecret, SettingsError, Unauthorized
from tests.support.signing import WHSEC, github, shop, slack, standard_webhooks, stripe_header

NEW, OLD = "BLACKSMITH_TEST_NEW", "BLACKSMITH_TEST_OLD"
BOTH = (Secret(NEW), Secret(OLD))
BODY = b'{"id": "evt_1", "amount": 1200}'
WINDOW = 300


def svix(secret: str, body: bytes, at: int) -> dict[str, str]:
    headers = standard_webhooks(secret, body, at)
    return {name.replace("webhook", "svix"): value for name, value in headers.items()}


@dataclass
class Scheme:
    """How a signature is declared, and how it is made."""

    declare: Callable[..., Any]
    sign: Callable[[str, bytes, int], dict[str, str]]
    timed: bool = True
    secrets: tuple[str, str] = ("hunter2-new", "hunter2-old")


SCHEMES = {
    "standard webhooks": Scheme(StandardWebhooksSignature, standard_webhooks, secrets=WHSEC),
    "svix": Scheme(StandardWebhooksSignature, svix, secrets=WHSEC),
    "github": Scheme(GitHubSignature, github, timed=False),
    "stripe": Scheme(StripeSignature, stripe_header),
    "slack": Scheme(SlackSignature, slack),
    "hmac": Scheme(
        lambda *secrets: HMACSignature(
            *secrets,
            header="X-Shop",
            algorithm="sha512",
            encoding="base64",
            timestamp_header="X-Shop-At",
        ),
        shop,
    ),
}


@pytest.fixture
def at() -> int:
    """When it is signed."""
    return int(time.time())


def headers_of(sent: dict[str, str]) -> dict[bytes, bytes]:
    return {name.lower().encode(): value.encode("latin-1") for name, value in sent.items()}


def proved(auth: Any, sent: dict[str, str], body: bytes = BODY) -> str | None:
    """The key of an accepted request; raises `Unauthorized` for another."""
    headers = headers_of(sent)
    auth.admit(headers)
    key: str | None = auth.verify(headers, body)
    return key


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Scheme:
    chosen = SCHEMES[request.param]
    monkeypatch.setenv(NEW, chosen.secrets[0])
    monkeypatch.setenv(OLD, chosen.secrets[1])
    return chosen


def rejected(auth: Any, sent: dict[str, str], body: bytes = BODY) -> str:
    with pytest.raises(Unauthorized) as raised:
        proved(auth, sent, body)
    said = str(raised.value)
    assert raised.value.challenge.startswith("Signature ")
    for secret in (*WHSEC, "hunter2"):
        assert secret not in said + raised.value.challenge
    return said


def test_a_sender_is_let_in(scheme: Scheme, at: int) -> None:
    auth = scheme.declare(Secret(NEW))
    auth.check()
    key = proved(auth, scheme.sign(scheme.secrets[0], BODY, at))
    assert (key is not None) == scheme.timed


def test_wrong_signature(scheme: Scheme, at: int) -> None:
    auth = scheme.declare(Secret(NEW))
    right = scheme.sign(scheme.secrets[0], BODY, at)
    assert "does not match this body" in rejected(auth, scheme.sign(scheme.secrets[1], BODY, at))
    for name in right:
        assert f"{name} is missing" in rejected(auth, right | {name: ""})
        for wrong in ("x", "v1,", "v1", "t=1,v1=é", "v0=", "sha256=zz", ",", "=" * 99, "9" * 5000):
            rejected(auth, right | {name: wrong})


def test_old_signature(scheme: Scheme) -> None:
    auth = scheme.declare(Secret(NEW))
    now = int(time.time())
    for at in (now - WINDOW + 20, now + WINDOW - 20):
        proved(auth, scheme.sign(scheme.secrets[0], BODY, at))
    for at, how in ((now - WINDOW - 20, "old"), (now + WINDOW + 20, "ahead")):
        signed = scheme.sign(scheme.secrets[0], BODY, at)
        if scheme.timed:
            assert how in rejected(auth, signed)
        else:
            proved(auth, signed)


def test_two_rotating_secrets(scheme: Scheme, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    auth = scheme.declare(*BOTH)
    auth.check()
    new, old = (scheme.sign(secret, BODY, at) for secret in scheme.secrets)
    # Whichever has signed it, a request that is sent again is the same.
    assert proved(auth, new) == proved(auth, old)
    monkeypatch.delenv(OLD)
    auth.check()
    proved(auth, new)
    rejected(auth, old)
    monkeypatch.delenv(NEW)
    with pytest.raises(MissingSecret, match=NEW):
        auth.check()


def test_body_changed_by_one_byte(scheme: Scheme, at: int) -> None:
    auth = scheme.declare(Secret(NEW))
    signed = scheme.sign(scheme.secrets[0], BODY, at)
    for place in range(len(BODY)):
        flipped = bytearray(BODY)
        flipped[place] ^= 1
        rejected(auth, signed, bytes(flipped))
    for changed in (BODY[:-1], BODY + b" ", b"", b" " + BODY):
        rejected(auth, signed, changed)


def test_what_is_signed_beside_the_body_cannot_be_changed(scheme: Scheme, at: int) -> None:
    auth = scheme.declare(Secret(NEW))
    signed = scheme.sign(scheme.secrets[0], BODY, at)
    for name, value in signed.items():
        if value == str(at):
            rejected(auth, signed | {name: str(at + 1)})
    if "webhook-id" in signed:
        rejected(auth, signed | {"webhook-id": "msg_2"})
    if "Stripe-Signature" in signed:
        later = signed["Stripe-Signature"].replace(f"t={at}", f"t={at + 1}")
        rejected(auth, {"Stripe-Signature": later})


def test_one_right_signature_of_several_is_enough(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    monkeypatch.setenv(NEW, WHSEC[0])
    both = [standard_webhooks(secret, BODY, at) for secret in WHSEC]
    joined = " ".join(["v1a,xyz", *(headers["webhook-signature"] for headers in reversed(both))])
    standard = StandardWebhooksSignature(Secret(NEW))
    assert proved(standard, both[0] | {"webhook-signature": joined}) == "msg_1"
    monkeypatch.setenv(NEW, "hunter2-new")
    (new, old) = (
        stripe_header(secret, BODY, at)["Stripe-Signature"] for secret in ("hunter2-new", "x")
    )
    several = f"{old},{new.partition(',')[2]},v0=6ffbb59b2300aae63f272406069a9788"
    proved(StripeSignature(Secret(NEW)), {"Stripe-Signature": several})


def test_the_documents_own_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    # GitHub, "Validating webhook deliveries", testing.
    monkeypatch.setenv(NEW, "It's a Secret to Everybody")
    expected = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    proved(GitHubSignature(Secret(NEW)), {"X-Hub-Signature-256": expected}, b"Hello, World!")
    # Standard Webhooks, the reference libraries' test vector.
    monkeypatch.setenv(NEW, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    sent = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    standard = StandardWebhooksSignature(Secret(NEW))
    body = b'{"test": 2432232314}'
    assert standard.verify(headers_of(sent), body) == "msg_p5jXN8AQM9LWM0D4loKWxJek"
    # Slack, "Verifying requests from Slack", step by step.
    monkeypatch.setenv(NEW, "8f742231b10e8888abcd99yyyzzz85a5")
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
        b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
        b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands"
        b"%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121"
        b".803a0bc887a14d10d2c447fce8b6703c"
    )
    sent = {
        "X-Slack-Request-Timestamp": "1531420618",
        "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
    }
    assert SlackSignature(Secret(NEW)).verify(headers_of(sent), body)
    # RFC 4231, test case 2.
    monkeypatch.setenv(NEW, "Jefe")
    digest = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    rfc = HMACSignature(Secret(NEW), header="X-MAC")
    proved(rfc, {"X-MAC": digest}, b"what do ya want for nothing?")


@pytest.mark.parametrize("value", ["whsec_", "not base64!", "whsec_a"])
def test_a_secret_of_standard_webhooks_is_base64(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NEW, value)
    with pytest.raises(SettingsError, match=NEW) as raised:
        StandardWebhooksSignature(Secret(NEW)).check()
    assert value == "whsec_" or value not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"header": "X Y"}, "cannot name a header"),
        ({"header": "X", "timestamp_header": "é"}, "cannot name a header"),
        ({"header": "X", "algorithm": "md5"}, "write one of sha1, sha256"),
        ({"header": "X", "encoding": "base32"}, "hex, base64"),
        ({"header": "X", "signed": "{timestamp}.{body}"}, "must end with '{body}'"),
        ({"header": "X", "timestamp_header": "Y", "signed": "{body}"}, "must end with '{body}'"),
        ({"header": "X", "signed": "{body}."}, "must end with '{body}'"),
        ({"header": "X", "tolerance": "soon"}, "is not a duration"),
        ({"header": "X", "tolerance": "8d"}, "7d at most"),
    ],
)
def test_a_signature_is_declared(given: dict[str, Any], says: str) -> None:
    with pytest.raises(DeclarationError) as raised:
        HMACSignature(Secret(NEW), **given)
    assert says in str(raised.value)


def test_a_secret_is_named_not_written() -> None:
    for scheme in SCHEMES.values():
        for given in ([], ["hunter2"], [Secret(NEW), "hunter2"]):
            with pytest.raises(DeclarationError, match="takes a Secret") as raised:
                scheme.declare(*given)
            assert "hunter2" not in str(raised.value)


def test_a_body_may_hold_any_letters(at: int) -> None:
    body = json.dumps({"name": "Zoë 🛫"}, ensure_ascii=False).encode()
    with pytest.MonkeyPatch.context() as patch:
        for scheme in SCHEMES.values():
            patch.setenv(NEW, scheme.secrets[0])
            proved(scheme.declare(Secret(NEW)), scheme.sign(scheme.secrets[0], body, at), body)
