# make shapes: train, evaluate and report on toy shapes.   make test: everything that must hold.
# Both need python3, make and a package index; what they install stays in .venv.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/shapes
SEED ?= 0
JOBS ?= auto

.PHONY: shapes test test-long lint types layers conventions contracts clean

# Interrupted (Ctrl-C) or finished, the run in $(OUT) is continued; FLAGS="--steps 100" and the like are passed on.
shapes: .venv/installed
	$(BIN)/refnet train shapes --out $(OUT) --seed $(SEED) $(if $(wildcard $(OUT)/checkpoints),--resume) $(FLAGS)

# One process a core, and one thread of BLAS in each: more of either would only wait for each other.
PYTEST := OPENBLAS_NUM_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile

test: .venv/tested lint types layers
	HYPOTHESIS_PROFILE=default $(PYTEST)

test-long: .venv/tested
	HYPOTHESIS_PROFILE=long $(PYTEST)

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folder kernels/ is the package refnet.kernels: type checkers follow no such mapping, so they see a copy.
types: .venv/tested
	rm -rf build/types && mkdir -p build/types && cp -r refnet build/types && cp -r kernels build/types/refnet/kernels
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p refnet

layers: .venv/tested
	$(BIN)/lint-imports

# The README's table of conventions and its list of choices, from the code and the tests' markers.
conventions: .venv/installed
	$(BIN)/python -m refnet.conformance.table README.md

# What every CUDA kernel takes of a GPU, measured anew by compiling it; prints what changed, for a person to judge.
contracts: .venv/tested
	$(BIN)/python -m refnet.kernels.cuda.contracts

.venv/created:
	$(PYTHON) -m venv .venv
	touch $@

.venv/installed: .venv/created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/tested: .venv/created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ .venv/installed

# Runs stay: nobody wants to lose those by tidying up.
clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
