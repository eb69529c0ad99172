"""The package works without its extras, and names the one that is missing."""

import subprocess
import sys

from blacksmith_dagster.cli.inspect import as_csv

WITHOUT_PANDAS = """
import importlib, pkgutil, sys

sys.modules["pandas"] = None  # importing it raises ImportError

import blacksmith_dagster

for module in pkgutil.walk_packages(blacksmith_dagster.__path__, "blacksmith_dagster."):
    if "schema" not in module.name and not module.name.endswith("__main__"):
        importlib.import_module(module.name)
try:
    blacksmith_dagster.Batch("lake/flights", []).to_pandas()
except ImportError as error:
    print(error)
"""


def test_pandas_is_an_extra() -> None:
    command = [sys.executable, "-c", WITHOUT_PANDAS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "pip install 'blacksmith-dagster[pandas]'" in done.stdout


def test_csv_has_a_column_for_each_field() -> None:
    rows = [
        {"id": "a", "data": {"flight": {"n": 1545}, "seats": [1, 2], "note": 'say "hi", twice'}},
        {"id": "b", "data": {"late": True, "note": None}},
    ]
    assert as_csv(rows).splitlines() == [
        "id,data.flight.n,data.seats,data.note,data.late",
        'a,1545,"[1,2]","say ""hi"", twice",',
        "b,,,,True",
    ]
