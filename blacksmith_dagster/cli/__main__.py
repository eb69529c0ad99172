"""`python -m blacksmith_dagster.cli`: the `blacksmith` command, run by this interpreter."""

from blacksmith_dagster.cli import main

if __name__ == "__main__":
    main(prog_name="blacksmith")
