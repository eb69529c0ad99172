"""Where Consul is, by a URL and the environment."""

from pathlib import Path
from typing import Any

import pytest

from blacksmith_dagster.errors import SettingsError
from blacksmith_dagster.supervisor.address import ConsulAddress, parse_consul_url


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("consul://", {}, ConsulAddress("127.0.0.1", 8500)),
        ("consul://agent", {}, ConsulAddress("agent", 8500)),
        ("consul://[::1]:8600", {}, ConsulAddress("::1", 8600)),
        ("consul://:t%2Fk@agent", {}, ConsulAddress("agent", 8500, token="t/k")),
        ("consul://tk@agent", {}, ConsulAddress("agent", 8500, token="tk")),
        (
            "consul://agent?scheme=https&dc=eu&namespace=team&ttl=20s&lock_delay=0",
            {},
            ConsulAddress(
                "agent", 8500, "https", dc="eu", namespace="team", ttl=20.0, lock_delay=0.0
            ),
        ),
        ("consul://agent?ttl=30", {}, ConsulAddress("agent", 8500, ttl=30.0, lock_delay=15.0)),
        (
            "consul://",
            {"CONSUL_HTTP_ADDR": "https://there:1234", "CONSUL_HTTP_TOKEN": "tk"},
            ConsulAddress("there", 1234, "https", token="tk"),
        ),
        (
            "consul://agent",
            {"CONSUL_HTTP_ADDR": "there:1234", "CONSUL_HTTP_SSL": "true"},
            ConsulAddress("agent", 8500, "https"),
        ),
        (
            "consul://:mine@agent",
            {"CONSUL_HTTP_TOKEN": "theirs", "CONSUL_NAMESPACE": "team"},
            ConsulAddress("agent", 8500, token="mine", namespace="team"),
        ),
        (
            "consul://a",
            {"CONSUL_HTTP_SSL_VERIFY": "false"},
            ConsulAddress("a", 8500, verify=False),
        ),
        (
            "consul://a",
            {
                "CONSUL_CACERT": "ca.pem",
                "CONSUL_CLIENT_CERT": "me.pem",
                "CONSUL_CLIENT_KEY": "me.key",
            },
            ConsulAddress("a", 8500, verify="ca.pem", certificate=("me.pem", "me.key")),
        ),
    ],
)
def test_the_url_goes_before_the_environment(
    url: str, environment: dict[str, str], expected: ConsulAddress
) -> None:
    assert parse_consul_url(url, environment) == expected


def test_a_token_may_be_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("tk\n")
    assert parse_consul_url("consul://", {"CONSUL_HTTP_TOKEN_FILE": str(path)}).token == "tk"
    with pytest.raises(SettingsError, match="cannot be read"):
        parse_consul_url("consul://", {"CONSUL_HTTP_TOKEN_FILE": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("url", "environment", "said"),
    [
        ("consul://agent:port", {}, "the port is not a number"),
        ("consul://agent:65536", {}, "the port is not a number"),
        ("consul://:canary@agent?token=x", {}, "no option token"),
        ("consul://agent?ttl=soon", {}, "ttl= is seconds"),
        ("consul://agent?ttl=0", {}, "from 1 to 60"),
        ("consul://agent?lock_delay=61", {}, "from 0 to 60"),
        ("consul://agent?scheme=ftp", {}, "http or https"),
        ("consul://", {"CONSUL_HTTP_ADDR": "unix:///run/consul"}, "CONSUL_HTTP_ADDR"),
        ("consul://", {"CONSUL_HTTP_SSL": "perhaps"}, "CONSUL_HTTP_SSL is true or false"),
    ],
)
def test_what_is_wrong_is_reported(url: str, environment: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        parse_consul_url(url, environment)
    assert "canary" not in str(caught.value)


def test_no_token_is_shown() -> None:
    address: Any = parse_consul_url("consul://:canary@agent", {})
    assert "canary" not in f"{address!r} {address.label}"
