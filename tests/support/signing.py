"""Requests as senders sign them: with their own libraries, or as they document it."""

import base64
import hashlib
import hmac
from datetime import UTC, datetime

import stripe
from slack_sdk.signature import SignatureVerifier
from standardwebhooks import Webhook


def standard_webhooks(secret: str, body: bytes, at: int, name: str = "msg_1") -> dict[str, str]:
    signed = Webhook(secret).sign(name, datetime.fromtimestamp(at, UTC), body.decode())
    return {"webhook-id": name, "webhook-timestamp": str(at), "webhook-signature": signed}


def github(secret: str, body: bytes, at: int) -> dict[str, str]:
    # GitHub's documents: "Validating webhook deliveries".
    digest = hmac.new(secret.encode(), msg=body, digestmod=hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={digest}"}


def stripe_header(secret: str, body: bytes, at: int) -> dict[str, str]:
    signature = stripe.WebhookSignature.generate_signature_header(body.decode(), secret, at)
    return {"Stripe-Signature": signature}


def slack(secret: str, body: bytes, at: int) -> dict[str, str]:
    signature = SignatureVerifier(secret).generate_signature(timestamp=str(at), body=body)
    assert signature is not None
    return {"X-Slack-Signature": signature, "X-Slack-Request-Timestamp": str(at)}


def shop(secret: str, body: bytes, at: int) -> dict[str, str]:
    digest = hmac.digest(secret.encode(), b"%d.%s" % (at, body), "sha512")
    return {"X-Shop": base64.b64encode(digest).decode(), "X-Shop-At": str(at)}


WHSEC = ("whsec_" + base64.b64encode(b"a" * 24).decode(), base64.b64encode(b"b" * 32).decode())


SECRETS = ("hunter2-new", "hunter2-old")


def bearer(secret: str, body: bytes, at: int) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def write_key(secret: str, body: bytes, at: int) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{secret}:'.encode()).decode()}"}
