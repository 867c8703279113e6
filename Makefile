# `make demo` and `make test` set up by themselves, once, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check clean

demo: $(VENV)/.demo
	$(BIN)/authz demo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m 'not alone'
	$(BIN)/pytest -m alone

$(VENV)/.demo: pyproject.toml setup.py $(wildcard protos/authz/v1/*.proto)
	@echo "Setting up $(VENV), once: about 1.5 GB from PyPI, which takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml setup.py $(wildcard protos/authz/v1/*.proto)
	@echo "Setting up $(VENV) for the tests, once: up to 2 GB from PyPI, which takes some minutes"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) build *.egg-info
