"""The admin port: what a service manager reads there."""

import contextlib

import httpx
import pytest

from blacksmith_dagster.admin import answering, listen
from blacksmith_dagster.errors import SettingsError, Unavailable


def test_it_answers_with_the_problems() -> None:
    problems: list[str] = []

    def ready() -> None:
        if problems:
            raise Unavailable("the store does not respond")

    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with (
            answering(listener, lambda: problems, ready),
            httpx.Client(base_url=f"http://127.0.0.1:{port}/health", trust_env=False) as client,
        ):
            assert client.get("/live").json() == {"live": True}
            assert client.get("/ready").json() == {"ready": True}
            problems.append("loading lake/rows has ended")
            live, ready_ = client.get("/live"), client.get("/ready")
            assert (live.status_code, ready_.status_code) == (503, 503)
            assert live.json() == {"live": False, "problems": ["loading lake/rows has ended"]}
            assert ready_.json()["problems"] == ["the store does not respond"]
            assert client.get("/").status_code == 404
            with pytest.raises(SettingsError, match=r"Address already in use.*--admin-port"):
                listen("127.0.0.1", port)
