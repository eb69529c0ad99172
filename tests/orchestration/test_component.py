"""The application as a component, and the package as Dagster knows it."""

from datetime import date
from importlib.metadata import entry_points

import pytest
import yaml
from dagster import AssetKey
from dagster._core.libraries import DagsterLibraryRegistry
from dagster.components.testing import create_defs_folder_sandbox

from blacksmith_dagster.orchestration import BlacksmithComponent

# Dagster's own.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`parse_obj_as` is deprecated"),
    pytest.mark.filterwarnings("ignore:.* is currently in beta"),
]

COMPONENT = "blacksmith_dagster.orchestration.BlacksmithComponent"


def test_a_component_has_the_definitions_of_its_application() -> None:
    with create_defs_folder_sandbox() as sandbox:
        sandbox.scaffold_component(
            component_cls=BlacksmithComponent,
            defs_path="events",
            defs_yaml_contents={
                "type": COMPONENT,
                "attributes": {
                    "app": "tests.support.pipelines.dagster_faults:blacksmith",
                    "start_date": "2026-01-01",
                    "translation": {
                        "key": "events/{{ data.event.path }}",
                        "group_name": "{{ spec.group_name }}_events",
                    },
                },
            },
        )
        with sandbox.build_all_defs() as definitions:
            assert definitions.resolve_job_def("load_lake")
            specs = {spec.key: spec for spec in definitions.resolve_all_asset_specs()}
    flights = specs[AssetKey(["events", "lake", "flights"])]
    assert flights.group_name == "lake_events"
    assert [dep.asset_key for dep in flights.deps] == [AssetKey(["events", "airport", "departed"])]


def test_a_scaffolded_component_says_what_to_fill_in() -> None:
    with create_defs_folder_sandbox() as sandbox:
        folder = sandbox.scaffold_component(component_cls=BlacksmithComponent, defs_path="events")
        written = yaml.safe_load((folder / "defs.yaml").read_text())
        assert written["type"].endswith(".BlacksmithComponent")
        assert written["attributes"]["app"] == "my_package.application:blacksmith"
        assert date.fromisoformat(written["attributes"]["start_date"])


def test_dg_and_dagster_know_the_package() -> None:
    modules = entry_points(group="dagster_dg_cli.registry_modules", name="blacksmith_dagster")
    assert [module.value for module in modules] == ["blacksmith_dagster.orchestration"]
    assert "blacksmith-dagster" in DagsterLibraryRegistry.get()
