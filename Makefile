# Needs python3 >= 3.11 with venv, make and git. Everything else is installed into .venv, except
# the test services, which scripts/services installs from Debian if it has the rights.
PYTHON ?= python3

.PHONY: demo test unit soak check format bench build docs services clean

demo: .venv/demo.stamp
	.venv/bin/python -m scripts.demo $(ARGS)

test: .venv/dev.stamp services
	.venv/bin/python -m scripts.run_tests $(PYTEST_ARGS)

# What needs no service and no type checker.
unit: .venv/dev.stamp
	.venv/bin/python -m pytest tests/unit $(PYTEST_ARGS)

# Rounds of what is random: faults in a deployment of several hosts, and generated input. A hundred
# rounds take about an hour.
soak: .venv/dev.stamp services
	BLACKSMITH_TEST_SOAK=$(or $(ROUNDS),100) BLACKSMITH_TEST_SEED=$(SEED) \
		.venv/bin/python -m pytest -s -m 'soak or hypothesis' $(PYTEST_ARGS)

check: .venv/dev.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/python -m scripts.check_words
	.venv/bin/hadolint Dockerfile
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec compose.yaml deploy/compose.yaml
	.venv/bin/kubernetes-validate --strict --quiet deploy/kubernetes/*.yaml
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
