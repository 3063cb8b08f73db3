# make demo   install and run the main job: owner and contributors as real processes, verdicts at the end
# make test   install and run the fast tests          make slow    the slow ones
# make check  format, lint, types, import rules, generated stubs
# make bench  the budget table, measured and written to docs/results/budgets.json

# The first interpreter that is new enough; `make PYTHON=/path/to/python demo` overrules it.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export FLWR_TELEMETRY_ENABLED := 0

.PHONY: demo test slow check format protos bench clean
.DEFAULT_GOAL := demo

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Portier needs Python 3.11 or newer; none was found (set PYTHON=...)"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	@echo "installing Portier (torch is large; a few minutes at most) ..."
	$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	@echo "installing Portier and its development tools (torch is large; a few minutes at most) ..."
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@ .venv/installed

.venv/installed-simulation: .venv/installed-dev
	$(BIN)/python -m pip install -q -e '.[dev,simulation]'
	@touch $@

demo: .venv/installed
	$(BIN)/portier-owner simulate demo $(ARGS)

test: .venv/installed-dev
	$(if $(ARGS),$(BIN)/python -m pytest -q $(ARGS),$(BIN)/python -m tests.halves -q)

slow: .venv/installed-simulation
	$(BIN)/python -m pytest -q -m slow $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: .venv/installed-dev
	$(BIN)/python -m protos.generate

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.budgets $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
