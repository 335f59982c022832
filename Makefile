# From a clean clone, `make demo` sets up the environment and shows what Palate does.

PYTHON ?= python3
BIN := .venv/bin
# Up to four test processes side by side; a file stays in one of them.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist loadgroup
INSTALLED := .venv/.installed

.PHONY: help env demo embedded test test-all faults lint format lock

help:
	@echo "make demo      see Palate work on this machine"
	@echo "make env       the environment in .venv (PYTHON=python3.12 to choose another Python)"
	@echo "make test      the tests of every change; make test-all runs the slow ones too"
	@echo "make faults    kills, full disks, damaged checkpoints, stops: what a run survives"
	@echo "make lint      style, types and the imports between packages; make format mends the style"
	@echo "make embedded  the model that ships with Palate, made anew in runs/embedded (an hour; PART=100 a trial of minutes)"
	@echo "make lock      requirements.lock, anew from pyproject.toml"

env: $(INSTALLED)

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Palate needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Try: make env PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv

$(INSTALLED): requirements.lock pyproject.toml | $(BIN)/uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --compile-bytecode -r requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --no-deps -e .
	@touch $@

demo: env
	$(BIN)/palate demo --config tune_configs/demo/demo.yaml

embedded: env
	PATH="$(CURDIR)/$(BIN):$$PATH" dpo_core/embedded/recipe.sh runs/embedded $(PART)

test: env
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-all: env
	$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not gpu"

faults: env
	rm -f build/faults.jsonl
	PALATE_FAULTS=build/faults.jsonl $(BIN)/python -m pytest -m "" tests/dpo_core/test_kills.py tests/dpo_core/test_checkpoint.py \
		tests/dpo_core/test_stopping.py tests/dpo_core/test_spikes.py tests/dpo_core/test_mirror.py \
		tests/dpo_core/test_mirror_s3.py tests/ray_jobs/faults tests/ray_jobs/record/test_tracking.py \
		tests/ray_jobs/record/test_slow_server.py; \
	result=$$?; $(BIN)/python -m tests.fault_table build/faults.jsonl; exit $$result

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(BIN)/uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --no-header -o requirements.lock
