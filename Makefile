# Needs python3 >= 3.11 with venv, make and git. Everything else is installed into .venv, except
# the test services, which scripts/services installs from Debian if it has the rights.
PYTHON ?= python3

.PHONY: demo test soak check format bench build docs services clean

demo: .venv/demo.stamp
	.venv/bin/python -m scripts.demo $(ARGS)

test: .venv/dev.stamp services
	.venv/bin/python -m scripts.run_tests $(PYTEST_ARGS)

# Rounds of random faults in a deployment of several hosts: 100 rounds take about half an hour.
soak: .venv/dev.stamp services
	BLACKSMITH_TEST_SOAK=true BLACKSMITH_TEST_ROUNDS=$(or $(ROUNDS),100) BLACKSMITH_TEST_SEED=$(SEED) \
		.venv/bin/python -m pytest -s tests/acceptance/test_supervision_outages.py $(PYTEST_ARGS)

check: .venv/dev.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/python -m scripts.check_words
	.venv/bin/python -m scripts.build_docs

format: .venv/dev.stamp
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

bench: .venv/dev.stamp
	scripts/services wrk
	.venv/bin/python -m benchmarks $(ARGS)

# The sdist and the wheel, in dist/.
build: .venv/dev.stamp
	rm -rf dist
	.venv/bin/python -m build --no-isolation

# The docs site, in build/docs/site; a broken link or reference fails. With `make check` it is built too.
docs: .venv/docs.stamp
	.venv/bin/python -m scripts.build_docs

services:
	scripts/services

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# A stamp that is older than pyproject.toml means that dependencies may have changed.
.venv/demo.stamp: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -qq --editable '.[demo]'
	touch $@

.venv/docs.stamp: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -qq --editable '.[docs]'
	touch $@

.venv/dev.stamp: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -qq --editable '.[dev]'
	touch .venv/demo.stamp .venv/docs.stamp $@
