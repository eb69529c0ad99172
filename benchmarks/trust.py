"""Signed events that are held against a model, beside the same ones that nobody checks."""

import hmac
import shutil
from collections.abc import Iterator

from benchmarks.gateway import CONNECTIONS, Sender, _bodies, _into_store, _missing
from benchmarks.measure import Effort, Figure, alternate, beside
from benchmarks.pipeline import payload
from benchmarks.stores import postgres
from benchmarks.trust_pipeline import ENV, KEY, MODELS

BOUND = 0.70
TOLD = {
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
    bodies = [payload(n) for n in range(1000)]
    with (
        postgres() as made,
        _bodies(bodies) as plain,
        _bodies([f"{_signature(body)}\t{body}" for body in bodies]) as signed,
    ):
        limits, *checked = alternate(
            effort.rounds,
            _into_store(made, 1, Sender(plain, CONNECTIONS[0], effort.seconds), []),
            *(
                _into_store(
                    made,
                    1,
                    Sender(signed, CONNECTIONS[0], effort.seconds, path=f"/v1/trust/{name}"),
                    [],
                    "benchmarks.trust_pipeline:app",
                    ENV,
                )
                for name in MODELS
            ),
        )
        for name, rates in zip(MODELS, checked, strict=True):
            yield beside(f"{what} {TOLD[name]}; {made.name}", rates, limits, "requests/s", BOUND)


def _signature(body: str) -> str:
    return f"X-Hub-Signature-256: sha256={hmac.digest(KEY.encode(), body.encode(), 'sha256').hex()}"
