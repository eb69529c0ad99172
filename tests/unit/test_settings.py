"""Where a process finds its home, its store and its application."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from blacksmith_dagster.errors import BlacksmithError, DeclarationError, SettingsError
from blacksmith_dagster.importer import load_application, load_function
from blacksmith_dagster.settings import (
    ParsedURL,
    Settings,
    find_home,
    find_project,
    parse_url,
    read_env_file,
)

APPLICATION = """
from blacksmith_dagster import Blacksmith, Source
pipeline = Blacksmith(sources=[Source("{name}")], destinations=[])
"""


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A process of its own: no settings, no modules, a current folder without a project."""
    monkeypatch.delenv("BLACKSMITH_HOME", raising=False)
    monkeypatch.delenv("BLACKSMITH_STORE_URL", raising=False)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("place"):
            del sys.modules[name]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose application is `place.application:pipeline`."""
    folder = tmp_path / "project"
    (folder / "place" / "deep").mkdir(parents=True)
    write_app(folder, '"place.application:pipeline"')
    (folder / "place" / "application.py").write_text(APPLICATION.format(name="of_the_project"))
    return folder


def write_app(folder: Path, app: str) -> None:
    (folder / "pyproject.toml").write_text(f"[tool.blacksmith]\napp = {app}\n")


@pytest.mark.parametrize("inside", [".", "place", "place/deep"])
def test_the_home_is_beside_the_projects_file(
    project: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / inside)
    home = project / ".blacksmith"
    assert find_home() == home
    assert Settings.read() == Settings(f"sqlite:///{home}/store.db")
    assert list(load_application().sources) == ["of_the_project"]


def test_the_projects_variables_are_set_over_those_of_the_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Dagster does; the gateway and Dagster's runs must not see two stores."""
    monkeypatch.setattr(os, "environ", {"PLACE": "of the environment"})
    read_env_file()  # there is no project here
    monkeypatch.chdir(project / "place")
    read_env_file()  # which has no such file yet
    assert os.environ == {"PLACE": "of the environment"}
    (project / ".env").write_text("# a comment\nPLACE='of the file'\nDEEP=\nWITHOUT_VALUE\n")
    read_env_file()
    assert os.environ == {"PLACE": "of the file", "DEEP": ""}


def test_a_projects_file_without_the_table_is_passed_by(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, text in enumerate(('[project]\nname = "inner"\n', "tool = 1\n", "")):
        inner = project / "place" / f"inner{number}"
        inner.mkdir()
        (inner / "pyproject.toml").write_text(text)
        monkeypatch.chdir(inner)
        assert find_project() == project


def test_the_nearest_project_counts(project: Path) -> None:
    inner = project / "place" / "deep"
    write_app(inner, '"other:app"')
    assert find_project(inner) == inner
    assert find_project(project / "place") == project


def test_a_given_folder_counts_instead_of_the_current_one(project: Path) -> None:
    assert find_home(project / "place") == project / ".blacksmith"


def test_blacksmith_home_needs_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path / "elsewhere"))
    assert find_home() == tmp_path / "elsewhere"
    assert Settings.read().store_url == f"sqlite:///{tmp_path}/elsewhere/store.db"
    monkeypatch.setenv("BLACKSMITH_HOME", "~/of_mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_home() == tmp_path / "of_mine"
    monkeypatch.setenv("BLACKSMITH_HOME", "relative")
    assert find_home() == tmp_path / "relative"


def test_blacksmith_home_counts_before_the_project(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("BLACKSMITH_HOME", str(tmp_path))
    assert find_home() == tmp_path
    monkeypatch.setenv("BLACKSMITH_HOME", "")
    assert find_home() == project / ".blacksmith"


def test_the_stores_url_is_accepted_and_not_shown(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "postgresql://app:hunter2@db/events"
    monkeypatch.setenv("BLACKSMITH_STORE_URL", url)
    settings = Settings.read(project)
    assert settings.store_url == url
    assert "hunter2" not in f"{settings!r} {settings}"


def test_a_given_url_counts_before_the_environments_and_needs_no_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BLACKSMITH_PUBSUB_URL", "nats://one")
    monkeypatch.setenv("BLACKSMITH_SUPERVISOR_URL", "")
    settings = Settings.read(
        store_url="sqlite:////a.db", pubsub_url="nats://two", wanderer_url=None
    )
    assert settings == Settings("sqlite:////a.db", "nats://two")


def test_without_home_and_project_it_says_what_to_write() -> None:
    for ask in (Settings.read, load_application):
        with pytest.raises(
            SettingsError, match=r"no pyproject.toml with a \[tool.blacksmith\]"
        ) as e:
            ask()
        assert 'app = "package.module:name"' in str(e.value)
        assert "set BLACKSMITH_HOME and give --app" in str(e.value)


@pytest.mark.parametrize("content", [b"[tool.blacksmith\n", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_a_projects_file_that_cannot_be_read_is_named(project: Path, content: bytes) -> None:
    (project / "pyproject.toml").write_bytes(content)
    with pytest.raises(
        SettingsError, match=rf"{project}/pyproject.toml cannot be read: .*; fix it"
    ):
        Settings.read(project)


def test_a_projects_file_is_utf_8(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[tool.blacksmith]\napp = "flughäfen:pipeline"\n'
    (project / "pyproject.toml").write_bytes(text.encode())
    monkeypatch.chdir(project)
    with pytest.raises(SettingsError, match="no module 'flughäfen'"):
        load_application()


# ------------------------------------------------------------------------------ a URL
@pytest.mark.parametrize(
    ("url", "parsed"),
    [
        ("nats://", ParsedURL("nats")),
        ("sqlite:////home/me@work/a.db", ParsedURL("sqlite", path="//home/me@work/a.db")),
        ("kafka://one,two:2", ParsedURL("kafka", hosts=(("one", None), ("two", 2)))),
        ("http://[::1]:80", ParsedURL("http", hosts=(("::1", 80),))),
        ("nats://t%2Fk@a:", ParsedURL("nats", "t/k", hosts=(("a", None),))),
        ("amqp://:s@a/v%2Fh", ParsedURL("amqp", None, "s", (("a", None),), "/v%2Fh")),
        ("amqp://u:p/?#%40:q@a", ParsedURL("amqp", "u", "p/?#@:q", (("a", None),))),
        ("nats://a?x=%41&y=&x=2", ParsedURL("nats", hosts=(("a", None),), query="x=%41&y=&x=2")),
    ],
)
def test_a_url_is_parsed(url: str, parsed: ParsedURL) -> None:
    assert parse_url(url, "A_URL", "Write a URL") == parsed
    assert ParsedURL("nats", query="x=%41&y=&x=2").options == {"x": "2", "y": ""}


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "unsupported scheme ?://"),
        ("hidden", "unsupported scheme ?://"),
        ("ftp://user:hidden@host", "unsupported scheme ftp://"),
        ("nats:hidden@host", "it cannot be read"),
        ("nats://user:hid@den@host", "it has more than one @; percent-encode those"),
        ("nats://user:a@b/hidden@host", "it has more than one @; percent-encode those"),
        ("nats://user:hidden", "the port is not a number up to 65535"),
        ("nats://host:65536", "the port is not a number up to 65535"),
        ("nats://user:hidden@one,,two", "a host is missing or invalid"),
        ("nats://user:hidden@[::1", "a host is missing or invalid"),
        ("nats://user:hidden@host?x=1&z=2", "nats has no option z; it has x, y"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, reason: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_url(url, "A_URL", "Write nats://host", {"nats": ["y", "x"]})
    assert str(error.value).startswith(f"A_URL: {reason}")
    assert str(error.value).endswith(". Write nats://host")
    assert "hidden" not in str(error.value)
    assert "hidden" not in repr(ParsedURL("nats", "user", "hidden"))


# ------------------------------------------------------------------------------ the application
def test_an_application_that_is_given_is_looked_for_here(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "place_here.py").write_text(APPLICATION.format(name="of_this_folder"))
    assert list(load_application("place_here:pipeline").sources) == ["of_this_folder"]
    write_app(tmp_path, '"place_nowhere:nothing"')
    assert list(load_application("place_here:pipeline").sources) == ["of_this_folder"]


WRONG = [
    "",
    "place",
    "place:",
    ":pipeline",
    "place:a:b",
    ".place:a",
    "place/app.py:a",
    "a b:c",
    "a:b.",
]


@pytest.mark.parametrize("app", WRONG)
def test_an_application_is_named_by_module_and_name(
    app: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"write 'package\.module:name'") as raised:
        load_application(app)
    assert f"the application is {app!r};" in str(raised.value)
    write_app(project, repr(app))
    monkeypatch.chdir(project)
    with pytest.raises(SettingsError, match=r"write 'package\.module:name'") as raised:
        load_application()
    assert f"of {project}/pyproject.toml is {app!r};" in str(raised.value)


@pytest.mark.parametrize(("table", "says"), [("", "is missing"), ("app = 7", "is 7")])
def test_a_table_without_an_application_is_reported(
    table: str, says: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "pyproject.toml").write_text(f"[tool.blacksmith]\n{table}\n")
    monkeypatch.chdir(project)
    assert find_home() == project / ".blacksmith"
    with pytest.raises(SettingsError, match=rf"{says}; write 'package.module:name'"):
        load_application()


def test_what_is_not_there_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    for app, says in (
        ("placeless:pipeline", f"there is no module 'placeless' in {project}; correct the name"),
        ("place.nothing:pipeline", "there is no module 'place.nothing' in"),
        ("place.application.deeper:pipeline", "there is no module 'place.application.deeper'"),
        (
            "place.application:nothing",
            "'nothing' in .*application.py is nothing; name the Blacksmith",
        ),
        ("place.application:Source", "'Source' in .*application.py is a type; name the Blacksmith"),
    ):
        with pytest.raises(SettingsError, match=says):
            load_application(app)


def test_what_the_applications_module_raises_is_not_hidden(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    for name, line, error in (
        ("missing", "import place_missing_dependency", ModuleNotFoundError),
        ("attribute", "None.attribute", AttributeError),
        ("declared", "from blacksmith_dagster import Source; Source('A')", DeclarationError),
    ):
        (project / "place" / f"{name}.py").write_text(line)
        with pytest.raises(error) as raised:
            load_application(f"place.{name}:pipeline")
        assert not isinstance(raised.value, SettingsError)
    assert issubclass(DeclarationError, BlacksmithError)


# ------------------------------------------------------------------------------ a function
def test_a_function_that_is_given_is_looked_for_here(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "place_functions.py").write_text("def fix(event): return event\n")
    monkeypatch.chdir(project)
    assert load_function("place_functions:fix")(7) == 7
    with pytest.raises(SettingsError, match=f"no module 'placeless' in {project}; correct"):
        load_function("placeless:fix")


@pytest.mark.parametrize("name", [*WRONG, "place:nothing"])
def test_a_function_is_named_by_module_and_name(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(SettingsError, match=r"write 'package\.module:function'") as raised:
        load_function(name)
    assert f"there is no function {name!r};" in str(raised.value)
