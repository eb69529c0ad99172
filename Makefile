# Needs python3 >= 3.11 with venv, make and git. Everything else is installed into .venv, except
# the test services, which scripts/services installs from Debian if it has the rights.
PYTHON ?= python3
VERSIONS ?= 14 15 16 17 18

.PHONY: demo test unit coverage soak lowest newest postgres-versions check format bench build docs services clean

demo: .venv/demo.stamp
	.venv/bin/python -m scripts.demo $(ARGS)

test: .venv/dev.stamp services
	.venv/bin/python -m scripts.run_tests $(PYTEST_ARGS)

# All tests, and how many of the package's lines they run, in per cent. MEASURED="unit contract" counts
# those folders' tests only, and no process that they start. `coverage report -m` then has the lines.
coverage: export COVERAGE_FILE = $(CURDIR)/.coverage
coverage: .venv/dev.stamp services
	rm -f .coverage .coverage.*
	COVERAGE_PROCESS_START=$(CURDIR)/pyproject.toml BLACKSMITH_TEST_MEASURED="$(MEASURED)" \
		.venv/bin/python -m scripts.run_tests $(PYTEST_ARGS)
	.venv/bin/coverage combine -q
	@echo "coverage of $(or $(MEASURED),all) tests, in per cent:"
	.venv/bin/coverage report --format=total

# What needs no service and no type checker.
unit: .venv/dev.stamp
	.venv/bin/python -m pytest tests/unit $(PYTEST_ARGS)

# Rounds of what is random: faults in a deployment of several hosts, and generated input. A hundred
# rounds take about an hour.
soak: .venv/dev.stamp services
	BLACKSMITH_TEST_SOAK=$(or $(ROUNDS),100) BLACKSMITH_TEST_SEED=$(SEED) \
		.venv/bin/python -m pytest -s -m 'soak or hypothesis' $(PYTEST_ARGS)

# What meets the dependencies: with the oldest of them that pyproject.toml allows, and with the newest.
lowest newest: %: build/%.txt services
	.venv/bin/uv venv -q --clear --python $(PYTHON) build/$@
	.venv/bin/uv pip install -q --python build/$@ --editable '.[dev]' --constraints build/$@.txt
	build/$@/bin/python -m scripts.run_tests tests/unit tests/contract tests/orchestration $(PYTEST_ARGS)

# What meets PostgreSQL, on each version.
postgres-versions: .venv/dev.stamp services
	scripts/get-postgres $(VERSIONS)
	for version in $(VERSIONS); do \
		BLACKSMITH_TEST_POSTGRES_VERSION=$$version \
			.venv/bin/python -m scripts.run_tests tests/contract -m postgres $(PYTEST_ARGS) || exit; \
	done

check: .venv/dev.stamp
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
	.venv/bin/python -m scripts.check_words
	.venv/bin/hadolint Dockerfile
	.venv/bin/actionlint
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	.venv/bin/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	.venv/bin/pre-commit validate-config
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
	.venv/bin/python -m twine check --strict dist/*

# The docs site, in build/docs/site; a broken link or reference fails. With `make check` it is built too.
docs: .venv/docs.stamp
	.venv/bin/python -m scripts.build_docs

services:
	scripts/services

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The oldest of each direct dependency; of the others, the newest that fit.
build/lowest.txt: pyproject.toml .venv/dev.stamp
	mkdir -p build
	.venv/bin/uv pip compile -q $< --extra all --resolution lowest-direct --no-deps --upgrade -o $@ >/dev/null

build/newest.txt: .venv/dev.stamp
	mkdir -p build
	touch $@

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
