# Expunge. Two commands matter to a newcomer: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Tiny models run fastest on one thread; spinning workers slow everything else on a shared machine.
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false
export HF_HUB_OFFLINE ?= 1

.PHONY: demo demo-request test test-slow test-kill test-postgres study bench bench-quick check docs clean venv study-reversal study-noise study-domains study-costs collapse-map

venv: $(STAMP)

# The environment is rebuilt when what it was built from changed.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Expunge needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/expunge demo --overwrite

# One invented person's request, from intake to a verified certificate: about two minutes.
demo-request: $(STAMP)
	$(BIN)/expunge demo --request --overwrite

test: $(STAMP)
	$(BIN)/python -m pytest

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

# `expunge work` is killed a hundred times: about seven minutes.
test-kill: $(STAMP)
	$(BIN)/python -m pytest -m "slow or not slow" -s tests/desk/test_kills.py

# A throw-away PostgreSQL server on loopback, stopped at the end.
test-postgres: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,postgres]'
	$(BIN)/python tests/ledger/postgres_server.py $(BIN)/python -m pytest -m "slow or not slow" -s tests/ledger

# About fifteen minutes on two quiet cores; goes on where it was stopped.
study: $(STAMP)
	$(BIN)/python -m expunge.studies.archive_study runs/study
	mkdir -p results && cp runs/study/study.json results/archive-study.json
	$(BIN)/python -m expunge.studies.archive_page results/archive-study.json docs/archive-study.md

# About twenty-five minutes on a quiet machine: both sides in turn, equal numbers asserted, results and page written.
bench: $(STAMP)
	$(BIN)/python -m benchmarks run
	$(BIN)/python -m benchmarks page

# The same with a tiny model, under a minute; writes nothing.
bench-quick: $(STAMP)
	$(BIN)/python -m benchmarks run --preset quick

# About twenty minutes on two quiet cores; goes on where it was stopped.
study-reversal: $(STAMP)
	$(BIN)/python -m expunge.studies.reversal_study runs/reversal
	mkdir -p results && cp runs/reversal/reversal.json results/reversal-study.json
	$(BIN)/python -m expunge.studies.reversal_page results/reversal-study.json docs/hidden-or-removed.md

study-noise: $(STAMP)
	$(BIN)/python -m expunge.studies.noise_study runs/noise-study
	mkdir -p results && cp runs/noise-study/noise-study.json results/noise-study.json
	$(BIN)/python -m expunge.studies.noise_page results/noise-study.json docs/noisy-forget-sets.md

# About twelve minutes.
study-domains: $(STAMP)
	$(BIN)/python -m expunge.studies.domains_study runs/domains
	mkdir -p results && cp runs/domains/study.json results/domains-study.json
	$(BIN)/python -m expunge.studies.domains_page results/domains-study.json docs/three-domains.md

# About twenty minutes of one core; goes on where it was stopped.
study-costs: $(STAMP)
	$(BIN)/python -m expunge.studies.costs_study runs/costs
	mkdir -p results && cp runs/costs/costs.json results/guarantee-costs.json
	$(BIN)/python -m expunge.studies.costs_page results/guarantee-costs.json docs/what-guarantees-cost.md

collapse-map: $(STAMP)
	for m in npo grad_diff; do $(BIN)/expunge benchmark fictitious --criterion collapse --method $$m --rates 3e-4,1e-3,3e-3 --requests 3 --seeds 0,1,2 --set training.epochs=15 --set audit.bootstrap=300 --set audit.max_new_tokens=24 -o runs/collapse-$$m || exit 1; done
	$(BIN)/python -m expunge.studies.collapse_page results/collapse.json docs/collapse-map.md runs/collapse-npo/collapse.json runs/collapse-grad_diff/collapse.json

check: $(STAMP)
	$(BIN)/ruff check src tests docs benchmarks
	$(BIN)/ruff format --check src tests docs benchmarks
	$(BIN)/mypy src benchmarks

docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
