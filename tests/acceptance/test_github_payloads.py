"""A second real input: the payloads of GitHub's webhooks."""

import json
from contextlib import closing

from blacksmith_dagster.store import open_store
from tests.support.github_examples import examples as recorded
from tests.support.processes.blacksmith import GatewayProcess


def test_github_payloads(store_url: str) -> None:
    examples = list(recorded())
    assert len(examples) == 329
    app = "tests.support.pipelines.github:blacksmith"
    with (
        GatewayProcess(store_url, app) as gateway,
        gateway.client() as client,
        closing(open_store(store_url)) as store,
    ):
        for number, (name, example) in enumerate(examples):
            headers = {
                "Content-Type": "application/json",
                "X-GitHub-Event": name,
                "X-GitHub-Delivery": f"delivery-{number}",
            }
            # As people write it: letters beyond ASCII as they are, or escaped.
            body = json.dumps(example, indent=number % 3 or None, ensure_ascii=number % 2 == 0)
            raw_response = client.post("/v1/github/raw", content=body.encode(), headers=headers)
            (raw,) = raw_response.json()["ids"]
            assert store.log.event(raw).payload == body
            webhook_response = client.post(
                "/github/webhook", content=body.encode(), headers=headers
            )
            (webhook,) = webhook_response.json()["ids"]
            event = store.log.event(webhook)
            assert json.loads(event.payload) == json.loads(body)
            assert event.context == f'{{"event":"{name}"}}'
            assert event.key == f"delivery-{number}"
            again = client.post("/github/webhook", content=body.encode(), headers=headers)
            assert again.json() == {"ids": [webhook]}
        everything = json.dumps([example for _, example in examples]).encode()
        array = client.post(
            "/v1/github/raw", content=everything, headers={"Content-Type": "application/json"}
        )
        assert len(array.json()["ids"]) == 329
        assert len(store.log.newest(limit=2000)) == 3 * 329
        assert not store.quarantine.oldest()
