"""Signed events that the gateway validates against a model, beside the same events unchecked."""

import hmac
import shutil
from collections.abc import Iterator
from dataclasses import replace

from benchmarks.gateway import CONNECTIONS, Sender, _bodies, _into_store, _missing
from benchmarks.measure import Effort, Figure, alternate, beside
from benchmarks.pipeline import payload
from benchmarks.stores import postgres
from benchmarks.trust_pipeline import ENV, KEY, MODELS

BOUND = 0.70
REPORTED = {
    "any": "and no model",
    "msgspec": "and a msgspec.Struct",
    "pydantic": "and a pydantic.BaseModel",
    "jsonschema": "and a JSON Schema",
}


def trust(effort: Effort) -> Iterator[Figure]:
    """Requests per second of one event each, with a signature and each kind of model."""
    what = f"gateway, 1 worker, {CONNECTIONS[0]} connections, a signature"
    if shutil.which("wrk") is None:
        yield _missing(what)
        return
    body = payload(8)  # the same in all requests, so that one signature fits all
    digest = hmac.digest(KEY.encode(), body.encode(), "sha256").hex()
    with postgres() as databases, _bodies([body]) as bodies:
        plain = Sender(bodies, CONNECTIONS[0], effort.seconds)
        signed = {
            name: replace(
                plain, path=f"/v1/trust/{name}", header=f"X-Hub-Signature-256: sha256={digest}"
            )
            for name in MODELS
        }
        limits, *checked = alternate(
            effort.rounds,
            _into_store(databases, 1, plain, []),
            *(
                _into_store(databases, 1, sender, [], "benchmarks.trust_pipeline:app", ENV)
                for sender in signed.values()
            ),
        )
        for name, rates in zip(MODELS, checked, strict=True):
            yield beside(
                f"{what} {REPORTED[name]}; {databases.name}", rates, limits, "requests/s", BOUND
            )
