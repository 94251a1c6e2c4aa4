# `make demo` and `make test` work on a fresh clone that has Python 3.11, pip and make; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin
SERVERS := .venv-servers
PEERS := .venv-bench
READY := .venv/.installed
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check

.PHONY: demo test test-ray test-servers lint types bench

demo: $(READY)
	$(BIN)/solon demo

test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Real servers: `transformers serve`, and llama.cpp's through llama-cpp-python.
test-servers: $(READY) $(SERVERS)/.installed
	$(BIN)/python -m pytest -q --runslow tests/test_live_servers.py

# Ray with two actors on this machine, and runs that are killed.
test-ray: $(READY)
	@$(PIP) -e '.[ray]' -c constraints.txt
	$(BIN)/python -m pytest -q --runslow tests/test_engine_cluster.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/pyright

bench: $(READY) $(PEERS)/.installed
	$(BIN)/python benchmarks/sandbox_quality.py
	$(PEERS)/bin/python benchmarks/engine_scoring.py
	$(PEERS)/bin/python benchmarks/engine_generation.py --parts chains varying equal peers

# torch first and alone: a range would be met by the registry's newest build with gigabytes of CUDA packages.
$(READY): pyproject.toml constraints.txt
	@echo "Setting up .venv (once, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0 -c constraints.txt
	@$(PIP) -e '.[dev]' -c constraints.txt
	@touch $@

# An environment of its own: solon needs none of it, and llama.cpp is compiled.
$(SERVERS)/.installed:
	@echo "Building llama-cpp-python in $(SERVERS) (once, 10 to 30 minutes on two cores) ..."
	@test -x $(SERVERS)/bin/python || $(PYTHON) -m venv $(SERVERS)
	@CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" $(SERVERS)/bin/python -m pip install -qq \
		--disable-pip-version-check 'llama-cpp-python[server]==0.3.36' gguf==0.19.0 safetensors==0.8.0
	@touch $@

# What the benchmarks compare with, beside solon and in its versions: nothing of it is needed to use solon.
$(PEERS)/.installed: pyproject.toml constraints.txt
	@echo "Setting up $(PEERS) (once, a few minutes) ..."
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check torch==2.13.0 -c constraints.txt
	@$(PEERS)/bin/python -m pip install -qq --disable-pip-version-check -e . lm-eval==0.4.13 \
		distilabel==1.5.3 ctranslate2==4.8.5 -c constraints.txt
	@touch $@
