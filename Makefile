# Needs make, a POSIX shell and Python 3.11 or later; everything else goes into
# environments beside this file. `make help` lists the targets.

PYTHON ?=
export PYTHON
VENV ?= .venv
VENV_PROTO ?= .venv-proto
VENV_AUDIT ?= .venv-audit
VENV_CLUSTER ?= .venv-cluster
# PostgreSQL does not run as root; if you are root, Patroni needs a Python that another user can
# execute.
CLUSTER_PYTHON ?= $(if $(filter 0,$(shell id -u)),/usr/bin/python3,$(PYTHON))
# For `make run`: options of `sagastore-server serve`.
ARGS ?=
# For `make demo`: a legacy database to copy, and 1 to keep the folder.
LEGACY ?=
KEEP ?=
# For `make fuzz`: number of inputs, seed (any text; default: a new one), target (all, sqlite,
# postgres or phases), and a saved input to repeat.
COUNT ?= 100000
SEED ?=
TARGET ?= all
REPLAY ?=
# For `make chaos` and `make simulate`: number of rounds (default: 20 and 300), seed of the first
# one (SEED, default: random), a planted fault (all: each in turn), and options of
# `python -m tools.chaos`.
ROUNDS ?=
PLANT ?=
# For `make simulate`: a profile, and the order of ready callbacks (fifo or shuffle); the seed
# selects both by default.
PROFILE ?=
ORDER ?=
CHAOS_ARGS ?=
# For `make bench`: benchmarks (default: all; `quick`: a smoke test), number of visits, rounds per
# visit, rows of a large store, and the folder for stores and results.
BENCH ?=
VISITS ?=
SCALE ?=
FOLDER ?=
# For `make attacks`: names of attacks (default: all), and seconds of each (default: 60).
ATTACK ?=
SECONDS ?=
# For `make load`: loads (save, get, search, bulk-save, mix; default: all), and seconds of each.
# TARGET is the service, ARGS takes --cacert and similar options; SAGASTORE_TOKEN is the token.
LOAD ?=
DURATION ?=
# For `make parity`: JSON Lines or databases with messages. For `make porcupine`: histories, or
# folders with histories (default: var/chaos).
FILES ?=
# For `make test`: options of pytest. By default, three processes for two cores, because tests wait
# half of their time, and neighbouring tests in one process, because they share fixtures.
PARALLEL = -n $(shell expr $$(getconf _NPROCESSORS_ONLN) '*' 3 / 2) --dist worksteal
PYTEST_ARGS ?= $(PARALLEL)
# For `make breaking`: the commit to compare with.
AGAINST ?=
# For `make pins`: if empty, new dependencies are pinned and the other pins are kept.
PINS_ARGS ?= --upgrade

BIN = $(VENV)/bin
PIP = -m pip --disable-pip-version-check --quiet --no-input
# No addresses in what it writes: the pins hold wherever the packages come from.
COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate
RELEASE = build/release
PYPROJECTS = client/pyproject.toml server/pyproject.toml
GHZ_VERSION = 0.120.0
GHZ_FOLDER = $(CURDIR)/build/tools/bin
GHZ = $(GHZ_FOLDER)/ghz
HELM_VERSION = 3.22.0
HELM = $(GHZ_FOLDER)/helm

.DEFAULT_GOAL := help
.PHONY: help run run-postgres demo overload fuzz fuzz-arguments attacks chaos simulate porcupine bench load ghz ghz-where-go env test test-go test-helm test-patroni test-upgrade helm parity lint format docs sync-client proto proto-check breaking build release-constraints sbom audit pins clean spec spec-quick traces
.DELETE_ON_ERROR:

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## "; print "usage: make TARGET [NAME=VALUE]\n" } \
	    /^[a-z][a-z-]*:.*## / { printf "  %-19s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/.stamp-run ## Start the server in the foreground (ARGS='--listen HOST:PORT --sqlite FILE')
	@exec $(BIN)/sagastore-server serve $(ARGS)

run-postgres: $(VENV)/.stamp-dev ## Start a PostgreSQL with its data in var/, and the server on it
	@exec $(BIN)/python scripts/run_postgres.py $(ARGS)

demo: $(VENV)/.stamp-dev ## Migrate a legacy file under load, with a kill -9 (LEGACY=memory.db, KEEP=1)
	@exec $(BIN)/python -m scripts.demo $(if $(LEGACY),--legacy '$(LEGACY)') $(if $(KEEP),--keep) $(ARGS)

parity: $(VENV)/.stamp-dev ## Compare search on both stores (COUNT, default 5000; FILES='a.jsonl memory.db', default a sample)
	@$(BIN)/python -m tests.parity.compare $(if $(filter-out file,$(origin COUNT)),--queries '$(COUNT)') $(FILES)

fuzz: $(VENV)/.stamp-dev ## Send unusual, broken and hostile inputs to real servers (COUNT, SEED, TARGET, REPLAY=FILE)
	@exec $(BIN)/python -m tools.fuzz --count '$(COUNT)' --seed '$(SEED)' --target '$(TARGET)' \
	    $(if $(REPLAY),--replay '$(REPLAY)')

fuzz-arguments: $(VENV)/.stamp-dev ## Run odd and wrong command lines of both programs against a real server (ARGS='--count N --seed TEXT')
	@exec $(BIN)/python -m tools.fuzz.arguments $(ARGS)

attacks: $(VENV)/.stamp-dev ## Attack servers on this machine and check what they withstand (ATTACK='pings rapid-reset', SECONDS)
	@exec $(BIN)/python -m tools.attacks $(if $(ATTACK),--attack $(ATTACK)) \
	    $(if $(SECONDS),--seconds '$(SECONDS)') $(ARGS)

chaos: $(VENV)/.stamp-dev ## Run faults against a real service and check every answer (ROUNDS, SEED, PLANT=name or all)
	@exec $(BIN)/python -m tools.chaos --rounds '$(or $(ROUNDS),20)' --seed '$(SEED)' \
	    $(if $(filter all,$(PLANT)),--planted all,--plant '$(PLANT)') $(CHAOS_ARGS)

porcupine: $(VENV)/.stamp-dev ## Check the histories kept by make chaos with Porcupine, in Go (FILES='var/chaos')
	@$(BIN)/python -m tools.chaos.porcupine_check $(FILES)

simulate: $(VENV)/.stamp-dev ## Run the migration's code with faults on a seeded event loop (ROUNDS, SEED, PROFILE, PLANT=name or all)
	@exec $(BIN)/python -m tests.simulation --rounds '$(or $(ROUNDS),300)' --seed '$(SEED)' \
	    --profile '$(PROFILE)' --order '$(ORDER)' --plant '$(PLANT)' $(ARGS)

overload: $(VENV)/.stamp-dev ## Measure a server under ten times its capacity (ARGS)
	@$(BIN)/python -m scripts.overload $(ARGS)

bench: $(VENV)/.stamp-dev ghz-where-go ## Measure every ratio of docs/explanation/performance.md (BENCH='save-sqlite get-postgres', VISITS, ROUNDS, SCALE)
	@exec $(BIN)/python -m tools.benchmarks $(BENCH) $(if $(VISITS),--visits '$(VISITS)') \
	    $(if $(ROUNDS),--rounds '$(ROUNDS)') $(if $(SCALE),--scale '$(SCALE)') \
	    $(if $(FOLDER),--folder '$(FOLDER)') $(ARGS)

load: $(VENV)/.stamp-dev ghz-where-go ## Load a running service with ghz (TARGET=HOST:PORT, LOAD='save mix', DURATION, ARGS)
	@exec $(BIN)/python -m tools.benchmarks.ghz_load $(LOAD) \
	    $(if $(filter-out all,$(TARGET)),--target '$(TARGET)') \
	    $(if $(DURATION),--seconds '$(DURATION)') $(if $(FOLDER),--folder '$(FOLDER)') $(ARGS)

# A separate target, because `make -n` runs a recipe that contains $(MAKE).
ghz-where-go:
	@if command -v go >/dev/null && [ ! -x $(GHZ) ]; then $(MAKE) --no-print-directory ghz; fi

ghz: $(GHZ) ## Build the load generator ghz with Go, into build/tools/bin
	@echo "Ready: $(GHZ)"

helm: $(HELM) ## Build helm with Go, into build/tools/bin
	@echo "Ready: $(HELM)"

env: $(VENV)/.stamp-dev ## Create the development environment in .venv
	@echo "Ready: $(BIN) has sagastore, sagastore-server and the development tools"

# TLC needs Java. Without it, `make spec` fails and `make spec-quick` is skipped with a message.
spec: $(VENV)/.stamp-dev ## Check the specification of the migration: every instance (ARGS='--only NAME')
	@exec $(BIN)/python -m tools.spec $(ARGS)

traces: $(VENV)/.stamp-dev ## Check that simulated rounds are behaviours of the specification (ROUNDS, SEED)
	@exec $(BIN)/python -m tests.simulation.check_traces --rounds '$(or $(ROUNDS),10)' --seed '$(or $(SEED),100)'

spec-quick: $(VENV)/.stamp-dev ## Check small instances of the specification, and the planted mistakes
	@exec $(BIN)/python -m tools.spec --quick --optional $(ARGS)

test: $(VENV)/.stamp-dev ## Run the tests (PYTEST_ARGS='-k name', default: three processes for two cores)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-go: $(VENV)/.stamp-dev $(VENV_PROTO)/.stamp-proto ## Run the tests that need Go: a generated client, a short load by ghz, Porcupine
	@if command -v go >/dev/null && [ ! -x $(GHZ) ]; then $(MAKE) --no-print-directory ghz || true; fi
	@$(BIN)/python -m pytest -m go tests/e2e/test_go_client.py tests/benchmarks/test_ghz_load.py \
	    tests/chaos/test_porcupine_check.py

# Skipped with a message in a checkout without the history.
test-upgrade: $(VENV)/.stamp-dev ## Upgrade running servers of the previous schema version, with wheels built from the history
	@$(BIN)/python -m pytest -m history tests/e2e/test_upgrade_from_history.py

test-patroni: $(VENV)/.stamp-dev $(VENV_CLUSTER)/.stamp-cluster ## Fail over a Patroni cluster under load (needs etcd and haproxy; PYTEST_ARGS='-k frozen')
	@for program in etcd haproxy; do command -v $$program >/dev/null || { echo "error: $$program" \
	    "is missing; Debian, Ubuntu: apt install etcd-server haproxy" >&2; exit 1; }; done
	@$(BIN)/python -m pytest -q -s -m patroni tests/patroni $(filter-out $(PARALLEL),$(PYTEST_ARGS))

test-helm: $(VENV)/.stamp-dev $(VENV_CLUSTER)/.stamp-cluster $(HELM) ## Lint and render the Helm chart, and check the result with the schemas of Kubernetes
	@$(BIN)/python -m pytest -q tests/deploy

lint: $(VENV)/.stamp-dev ## Check style, types, import contracts and the protos
	@failed=; \
	for check in 'ruff check .' 'ruff format --check .' mypy 'lint-imports --no-logo' \
	    'python -m scripts.check_determinism' 'python -m scripts.check_tasks' 'python -m tools.async_to_sync --check' 'buf lint' \
	    'hadolint deploy/docker/Dockerfile' \
	    'check-jsonschema --builtin-schema vendor.compose-spec deploy/docker/compose.yaml'; do \
	    echo "== $$check"; $(BIN)/$$check || failed="$$failed [$$check]"; \
	done; \
	if [ -n "$$failed" ]; then echo "error: failed:$$failed" >&2; exit 1; fi

format: $(VENV)/.stamp-dev ## Format the code and apply automatic fixes
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp-dev ## Write the generated reference pages in docs/reference, and parts of the chart
	@$(BIN)/python -m scripts.write_configuration
	@$(BIN)/python -m scripts.write_chart
	@$(BIN)/python -m scripts.write_reference

sync-client: $(VENV)/.stamp-dev ## Generate the blocking client from the asynchronous client
	@$(BIN)/python -m tools.async_to_sync

proto: $(VENV_PROTO)/.stamp-proto ## Generate client/sagastore/v1 from protos/
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	scripts/generate.sh $(VENV_PROTO) "$$out" && \
	rm -f client/sagastore/v1/*_pb2*.py client/sagastore/v1/*_pb2*.pyi && \
	cp "$$out"/sagastore/v1/* client/sagastore/v1/ && \
	echo "Generated client/sagastore/v1"

proto-check: $(VENV_PROTO)/.stamp-proto ## Fail if client/sagastore/v1 is not what protos/ generates
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	scripts/generate.sh $(VENV_PROTO) "$$out" && \
	if diff -r -u -x __init__.py -x __pycache__ "$$out/sagastore/v1" client/sagastore/v1; then \
	    echo "client/sagastore/v1 is what protos/ generates"; \
	else \
	    echo "error: client/sagastore/v1 is out of date: run make proto" >&2; exit 1; \
	fi

breaking: $(VENV)/.stamp-dev ## Fail if protos/ breaks clients of the previous state (AGAINST=COMMIT)
	@scripts/breaking.sh $(BIN)/buf $(AGAINST)

build: $(VENV)/.stamp-dev ## Build wheels, source distributions and requirements with hashes into dist/
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation --outdir dist client
	@$(BIN)/python -m build --no-isolation --outdir dist server
	@$(BIN)/python -m scripts.release_requirements dist

sbom: build $(VENV_AUDIT)/.stamp-audit ## Install dist/ with hashes, and write its parts to dist/sbom.cdx.json (CycloneDX)
	@rm -rf $(RELEASE)
	@$(BIN)/python -m venv --without-pip $(RELEASE)
	@$(BIN)/python $(PIP) --python $(RELEASE)/bin/python install --require-hashes \
	    --only-binary :all: --find-links dist -r dist/requirements.txt
	@$(BIN)/python $(PIP) --python $(RELEASE)/bin/python check
	@$(RELEASE)/bin/sagastore-server --version
	@$(VENV_AUDIT)/bin/cyclonedx-py environment --output-reproducible \
	    --pyproject server/pyproject.toml -o dist/sbom.cdx.json $(RELEASE)/bin/python
	@echo "Wrote dist/sbom.cdx.json"

# Needs a vulnerability database, which pip-audit reads over the network. It fails if a package is
# not in the database, which it otherwise only reports.
audit: $(VENV_AUDIT)/.stamp-audit ## Check the pinned packages for known vulnerabilities (ARGS='-s osv')
	@failed=; \
	for pins in constraints-release.txt constraints-build.txt; do \
	    $(VENV_AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes --progress-spinner off \
	        -r $$pins $(ARGS) || failed="$$failed $$pins"; \
	done; \
	if [ -n "$$failed" ]; then echo "error: vulnerable, or not checked:$$failed" >&2; exit 1; fi

release-constraints: $(VENV)/.made ## Write the hashes of the pinned packages that a release needs
	@$(BIN)/python $(PIP) install -c constraints.txt uv
	@printf '%s\n' './client[cli]' './server[tracing]' | $(COMPILE) --upgrade --generate-hashes \
	    -c constraints.txt --no-emit-package sagastore --no-emit-package sagastore-server \
	    --output-file constraints-release.txt -
	@echo hatchling | $(COMPILE) --upgrade --generate-hashes -c constraints.txt \
	    --output-file constraints-build.txt -
	@echo "Wrote constraints-release.txt and constraints-build.txt"

pins: $(VENV)/.made ## Update the pinned versions and write the constraints files
	@$(BIN)/python $(PIP) install -c constraints.txt uv
	@printf '%s\n' '-r requirements-dev.in' './client[cli]' ./server | \
	    $(COMPILE) $(PINS_ARGS) --no-emit-package sagastore --no-emit-package sagastore-server \
	    --output-file constraints.txt -
	@$(COMPILE) $(PINS_ARGS) --output-file constraints-proto.txt requirements-proto.in
	@$(COMPILE) $(PINS_ARGS) --output-file constraints-audit.txt requirements-audit.in
	@$(COMPILE) $(PINS_ARGS) --output-file constraints-cluster.txt requirements-cluster.in
	@echo "Wrote constraints.txt and constraints-proto, -audit and -cluster.txt; now run" \
	    "make release-constraints"

clean: ## Remove environments, caches and built files
	rm -rf $(VENV) $(VENV_PROTO) $(VENV_AUDIT) $(VENV_CLUSTER) $(RELEASE) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find client server tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The version is set at build time, because ghz has none when Go builds it.
$(GHZ):
	@command -v go >/dev/null || { echo "error: ghz is built with Go, which is not here; install" \
	    "it (https://go.dev/dl), or put a ghz of https://github.com/bojand/ghz/releases onto the" \
	    "PATH, where make bench and make load find it" >&2; exit 1; }
	@echo "Building ghz $(GHZ_VERSION); the first time takes a minute or more"
	@GOBIN=$(GHZ_FOLDER) go install -ldflags '-X main.version=$(GHZ_VERSION)' \
	    github.com/bojand/ghz/cmd/ghz@v$(GHZ_VERSION)

$(HELM):
	@command -v go >/dev/null || { echo "error: helm is built with Go, which is not here; install" \
	    "it (https://go.dev/dl), or put helm onto the PATH and run make test" >&2; exit 1; }
	@echo "Building helm $(HELM_VERSION); the first time takes some minutes"
	@GOBIN=$(GHZ_FOLDER) go install helm.sh/helm/v3/cmd/helm@v$(HELM_VERSION)

# The environments. A stamp is rebuilt when a file that it depends on is newer.

$(VENV)/.made:
	@scripts/make-venv.sh $(VENV)
	@touch $@

$(VENV)/.stamp-run: $(VENV)/.made constraints.txt $(PYPROJECTS)
	@echo "Installing the server and the client into $(VENV)"
	@$(BIN)/python $(PIP) install -c constraints.txt hatchling editables
	@$(BIN)/python $(PIP) install -c constraints.txt --no-build-isolation -e './client[cli]' -e ./server
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-run requirements-dev.in
	@echo "Installing the development tools into $(VENV)"
	@$(BIN)/python $(PIP) install -c constraints.txt -r requirements-dev.in
	@touch $@

$(VENV_PROTO)/.stamp-proto: constraints-proto.txt requirements-proto.in
	@scripts/make-venv.sh $(VENV_PROTO)
	@echo "Installing the code generator into $(VENV_PROTO)"
	@$(VENV_PROTO)/bin/python $(PIP) install -c constraints-proto.txt -r requirements-proto.in
	@touch $@

$(VENV_AUDIT)/.stamp-audit: constraints-audit.txt requirements-audit.in
	@scripts/make-venv.sh $(VENV_AUDIT)
	@echo "Installing the tools for releases into $(VENV_AUDIT)"
	@$(VENV_AUDIT)/bin/python $(PIP) install -c constraints-audit.txt -r requirements-audit.in
	@touch $@

$(VENV_CLUSTER)/.stamp-cluster: constraints-cluster.txt requirements-cluster.in
	@PYTHON=$(CLUSTER_PYTHON) scripts/make-venv.sh $(VENV_CLUSTER)
	@echo "Installing Patroni and the schemas of Kubernetes into $(VENV_CLUSTER)"
	@$(VENV_CLUSTER)/bin/python $(PIP) install -c constraints-cluster.txt -r requirements-cluster.in
	@touch $@
