# `make demo` and `make test` work on a fresh clone that has Python 3.11, pip and make; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: demo test lint types bench

demo: $(READY)
	$(BIN)/solon demo

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

bench: $(READY)
	$(BIN)/python benchmarks/sandbox_quality.py

# torch first and alone: a range would be met by the registry's newest build with gigabytes of CUDA packages.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (once, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0 -c constraints.txt
	@$(PIP) -e '.[dev]' -c constraints.txt
	@touch $@
