# `make demo` and `make test` set up by themselves, once, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test thorough bench soak upgrade namespaces image image-named image-check kubernetes reference lock licences sbom audit wheel reproducible clean

demo: $(VENV)/.demo
	$(BIN)/authz demo

# Two at a time, tests of real servers can be hurried: those that failed so are run once more, alone,
# and both outcomes are told. Faults, and what is drawn at random, are not asked twice.
define TESTS
$(BIN)/pytest --numprocesses 2 --dist loadfile -m 'not alone and not namespaces and $(1)' || \
  { [ $$? = 1 ] && ! grep -E 'tests/(faults|fuzz)/|test_hostile' .pytest_cache/v/cache/lastfailed && \
    echo 'Once more, alone: what failed beside other tests' && \
    $(BIN)/pytest --last-failed --last-failed-no-failures none \
      -m 'not alone and not namespaces and $(1)'; }
$(BIN)/pytest -m 'alone and not namespaces and $(1)'
endef

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(call TESTS,not thorough)

# What `make test` leaves out: each form, platform, moment and cut of what it shows once.
thorough: $(VENV)/.dev
	$(call TESTS,thorough)

# Breaks the whole house at random under load: for MINUTES, drawn from SEED. Needs OPA; a C compiler
# for clocks that are set, and the right to mount (user namespaces do) for disks that get full.
MINUTES ?= 5
soak: $(VENV)/.dev
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Hosts and pods as namespaces of this machine: services whose links are cut, and docs/bare-hosts.md
# under a systemd of its own. Needs root and OPA; some minutes. It prints what it measured.
namespaces: $(VENV)/.dev
	$(BIN)/pytest -m namespaces -s

# Upgrades a running house from the version before, part by part, under load. Needs the history.
upgrade: $(VENV)/.dev
	$(BIN)/python -m tests.faults.upgrade

# All benchmarks, into docs/benchmarks.md: half an hour, on a machine with nothing else to do.
# PLUGIN is the program opa-envoy-plugin, the Check path's peer.
bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench $(if $(PLUGIN),--plugin $(PLUGIN))

# The pages of docs/reference, out of the code.
reference: $(VENV)/.dev
	$(BIN)/python -m docs.reference

# deploy/prometheus' alerts, for the Prometheus operator.
deploy/kubernetes/components/monitoring/alerts.yaml: deploy/prometheus/alerts.yaml
	{ printf '%s\n' '# By `make $@`, of $<.' 'apiVersion: monitoring.coreos.com/v1' \
	  'kind: PrometheusRule' 'metadata:' '  name: authz' '  namespace: authz' 'spec:'; \
	  sed 's/^/  /; s/ *$$//' $<; } > $@

# The container image, of the last commit: deploy/image/README.md.
BUILD_IMAGE ?= docker buildx build --sbom=true --provenance=mode=max --push
image: image-named wheel sbom
	$(BUILD_IMAGE) --file deploy/image/Dockerfile --build-arg BASE=$(BASE) --tag $(IMAGE) .

# A tag may be another image tomorrow.
image-named:
	@test -n "$(IMAGE)" || { echo 'give IMAGE=place:tag: deploy/image/README.md'; exit 2; }
	@echo '$(BASE)' | grep -Eq '^[^@ ]+@sha256:[0-9a-f]{64}$$' || \
	  { echo 'give BASE by digest, image@sha256:...: deploy/image/README.md'; exit 2; }

# Its steps, one by one, without a container engine; wants root and Debian's bubblewrap, mmdebstrap.
image-check: wheel sbom
	$(BIN)/pytest tests/interop/kubernetes/running.py -k test_the_image

# The overlays of deploy/kubernetes: taken by Kubernetes' own API server, built once for this (some
# minutes), then run as a kubelet would run them. Wants root, Go, OPA, bubblewrap, mmdebstrap, socat.
kubernetes: wheel sbom
	$(BIN)/pytest -s tests/interop/kubernetes/apiserver.py tests/interop/kubernetes/running.py

# What a release is made of: docs/releasing.md. `make lock UPGRADE=1` takes newer versions.
UV := $(BIN)/uv
LOCK := $(UV) pip compile --quiet --generate-hashes --custom-compile-command 'make lock' \
  --python-version 3.11 --python-platform x86_64-manylinux_2_28 $(if $(UPGRADE),--upgrade)

lock: $(VENV)/.dev
	$(LOCK) pyproject.toml --extra reports -o deploy/image/requirements.txt
	$(BIN)/python -c "import tomllib; \
	  print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" | \
	  $(LOCK) - -o deploy/image/build.txt

# What a server has installed, and nothing else: the locked packages, none built from source.
build/production: deploy/image/requirements.txt $(VENV)/.dev
	rm -rf $@ && $(UV) venv --quiet --python $(BIN)/python $@
	$(UV) pip install --quiet --no-build --require-hashes --python $@ -r $<

licences: build/production
	{ sed '/^| Name/,$$d' docs/licences.md; \
	  $(UV) tool run --quiet pip-licenses==5.5.5 --python $</bin/python --from=mixed \
	    --format=markdown | sed -E 's/ +/ /g; s/-{3,}/---/g'; } > build/licences.md
	mv build/licences.md docs/licences.md

sbom: build/production
	mkdir -p dist
	$(UV) tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py environment --pyproject \
	  pyproject.toml --output-reproducible -o dist/authz.cdx.json $</bin/python

# --strict: what the database of advisories does not know is a failure, and not "none known".
audit: $(VENV)/.dev
	$(UV) tool run --quiet pip-audit==2.10.1 --strict --disable-pip --require-hashes \
	  -r deploy/image/requirements.txt

# The wheel of the commit, built of nothing else, by the locked build tools.
BUILD = SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(CURDIR)/$(UV) build --quiet --wheel \
  --build-constraints deploy/image/build.txt --require-hashes

wheel: $(VENV)/.dev
	rm -rf build/commit dist/*.whl && mkdir -p build/commit
	git archive HEAD | tar -x -C build/commit
	cd build/commit && $(BUILD) -o $(CURDIR)/dist

# The same again as somebody else would: in another place, with another umask and time zone.
reproducible: wheel
	rm -rf build/another && mkdir -p build/another/place
	umask 077 && git archive HEAD | tar -x --no-same-permissions -C build/another/place
	cd build/another/place && umask 077 && TZ=Asia/Tokyo $(BUILD) -o ..
	cmp build/another/*.whl dist/authz-*.whl && sha256sum dist/authz-*.whl

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
	rm -rf $(VENV) build dist *.egg-info
