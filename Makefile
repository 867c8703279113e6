# `make demo` and `make test` set up by themselves, once, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench soak namespaces clean

demo: $(VENV)/.demo
	$(BIN)/authz demo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m 'not alone and not namespaces'
	$(BIN)/pytest -m 'alone and not namespaces'

# Breaks the whole house at random under load: for MINUTES, drawn from SEED. Needs OPA; a C compiler
# for clocks that are set, and the right to mount (user namespaces do) for disks that get full.
MINUTES ?= 5
soak: $(VENV)/.dev
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Hosts and pods as namespaces of this machine: services whose links are cut, and docs/bare-hosts.md
# under a systemd of its own. Needs root and OPA; some minutes. It prints what it measured.
namespaces: $(VENV)/.dev
	$(BIN)/pytest -m namespaces -s

# All benchmarks, into docs/benchmarks.md: half an hour, on a machine with nothing else to do.
# PLUGIN is the program opa-envoy-plugin, the Check path's peer.
bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench $(if $(PLUGIN),--plugin $(PLUGIN))

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
