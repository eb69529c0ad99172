"""A script of SQL is taken apart where its statements end."""

import pytest

from blacksmith_dagster.destinations.statements import split_postgresql, split_sqlite

ATOMIC = """CREATE FUNCTION two() RETURNS int
BEGIN ATOMIC
  SELECT CASE WHEN true THEN 1 ELSE 2 END;
  SELECT 2;
END"""
TRIGGER = """CREATE TRIGGER t AFTER INSERT ON a BEGIN
  UPDATE a SET b = CASE WHEN b > 1 THEN 1 ELSE 2 END;
  DELETE FROM a;
END;"""


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT ';'",
        "SELECT 'it''s;'",
        r"SELECT E'it\';'",
        r"SELECT '\'",
        'SELECT 1 AS ";"',
        "SELECT $$;$$",
        "SELECT $a$ $b$;$b$ $$;$$ $a$",
        "SELECT a$b$ FROM t",
        "SELECT $1",
        "SELECT 1 -- ;\n+ 1",
        "SELECT 1 /* ; /* ; */ ; */ + 1",
        "CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)",
        ATOMIC,
        "SELECT CASE WHEN true THEN 1 END",
    ],
)
def test_a_semicolon_within_something_ends_no_statement_of_postgresql(statement: str) -> None:
    assert list(split_postgresql(f"{statement};\n{statement} ;SELECT 1")) == [
        statement,
        statement,
        "SELECT 1",
    ]


@pytest.mark.parametrize("script", ["", " ; ;", "-- ;", "/* ; */;"])
def test_nothing_is_no_statement_of_postgresql(script: str) -> None:
    assert list(split_postgresql(script)) == []


@pytest.mark.parametrize(
    "statement",
    ["SELECT ';';", "SELECT 1 -- ;\n;", "SELECT /* ; */ 1;", 'SELECT ";";', TRIGGER],
)
def test_a_semicolon_within_something_ends_no_statement_of_sqlite(statement: str) -> None:
    assert list(split_sqlite(f"{statement}\n{statement} SELECT 1")) == [
        statement,
        statement,
        "SELECT 1",
    ]
