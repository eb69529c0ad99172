"""The gateway describes its endpoints, and conforms to its description, whatever it receives."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import randomness
from tests.support.pipelines.trust import NEW, OLD, PIPELINE, WHSEC_NEW, WHSEC_OLD
from tests.support.processes.blacksmith import GATEWAY_PIPELINE, GatewayProcess
from tests.support.signing import SECRETS, WHSEC, bearer, write_key

SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
ENV = {
    "CLOSED_TOKEN": SECRETS[0],
    NEW: SECRETS[0],
    OLD: SECRETS[1],
    WHSEC_NEW: WHSEC[0],
    WHSEC_OLD: WHSEC[1],
    "SEGMENT_KEY": SECRETS[0],
    "GITHUB_SECRET": SECRETS[0],
    "STRIPE_SECRET": SECRETS[0],
    "SLACK_SECRET": SECRETS[0],
    "HOOKS_SECRET": WHSEC[0],
}
# No schema can say that a key may be used only for one body. Items that do not fit are accepted where
# that is declared, or where pydantic can convert them.
NOT_PROMISED = "positive_data_acceptance,negative_data_rejection"


@pytest.mark.soak
@pytest.mark.timeout(180 + 10 * randomness.ROUNDS)
@pytest.mark.parametrize(
    ("pipeline", "proof"),
    [
        (PIPELINE, bearer(SECRETS[0], b"", 0)),
        (GATEWAY_PIPELINE, bearer(SECRETS[0], b"", 0)),
        ("tests.support.pipelines.webhooks:blacksmith", write_key(SECRETS[0], b"", 0)),
    ],
    ids=["trust", "gateway", "senders"],
)
def test_door_fuzz(pipeline: str, proof: dict[str, str], store_url: str, tmp_path: Path) -> None:
    seed = randomness.new_seed()
    with GatewayProcess(store_url, pipeline, env=ENV) as gateway:
        done = subprocess.run(
            [
                SCHEMATHESIS,
                "run",
                f"{gateway.url}/_openapi.json",
                f"--header=Authorization: {proof['Authorization']}",
                "--phases=coverage,fuzzing",
                f"--max-examples={randomness.rounds(20)}",
                f"--exclude-checks={NOT_PROMISED}",
                f"--seed={seed}",
                "--request-timeout=30",
                "--no-color",
            ],
            cwd=tmp_path,
            env={**os.environ, "NO_PROXY": "*"},
            capture_output=True,
            text=True,
            check=False,
            timeout=170 + 10 * randomness.ROUNDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        operations = sum(map(len, gateway.client_get("/_openapi.json").json()["paths"].values()))
        assert re.search(rf"Tested: +{operations}\b", done.stdout), done.stdout
        assert gateway.ready()
        assert "failed to process a request" not in gateway.log


def test_the_description_reports_what_is_declared(tmp_path: Path) -> None:
    with GatewayProcess(f"sqlite:///{tmp_path}/store.db", PIPELINE, env=ENV) as gateway:
        description = gateway.client_get("/_openapi.json").json()
    paths, components = description["paths"], description["components"]
    assert description["openapi"] == "3.1.0"
    assert set(paths["/v1/web/clicked"]) == {"post", "put"}
    order = components["schemas"]["orders.pydantic"]
    assert order["properties"]["id"] == {"title": "Id", "type": "integer"}
    line = order["properties"]["lines"]["items"]["$ref"]
    assert line == "#/components/schemas/orders.pydantic/$defs/PydanticLine"
    assert components["schemas"]["orders.jsonschema"]["properties"]["lines"]["items"] == {
        "$ref": "#/components/schemas/orders.jsonschema/$defs/line"
    }
    bearer = paths["/v1/web/locked"]["post"]
    ((scheme,),) = bearer["security"]
    assert components["securitySchemes"][scheme] == {"type": "http", "scheme": "bearer"}
    ((scheme,),) = paths["/v1/signed/stripe"]["post"]["security"]
    assert components["securitySchemes"][scheme]["name"] == "Stripe-Signature"
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert bearer["responses"]["401"]["content"] == problem
    assert "403" in paths["/v1/far/event"]["post"]["responses"]
    versions = paths["/v1/crm/user"]["post"]["parameters"][1]
    assert versions["schema"]["enum"] == ["2020-06-01", "2020-10-01", "2021-01-01"]
    for secret in (*SECRETS, *WHSEC):
        assert secret not in str(description)
