# make shapes: train, evaluate and report on the toy shapes.   make test: everything that must hold.
PYTHON ?= python3
BIN := .venv/bin
SEED ?= 0

.PHONY: shapes test test-long lint types layers clean

shapes: .venv/installed
	$(BIN)/refnet train shapes --out runs/shapes --seed $(SEED)

test: .venv/tested lint types layers
	HYPOTHESIS_PROFILE=default $(BIN)/python -m pytest

test-long: .venv/tested
	HYPOTHESIS_PROFILE=long $(BIN)/python -m pytest

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The folder kernels/ is the package refnet.kernels: type checkers follow no such mapping, so they see a copy.
types: .venv/tested
	rm -rf build/types && mkdir -p build/types && cp -r refnet build/types && cp -r kernels build/types/refnet/kernels
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p refnet

layers: .venv/tested
	$(BIN)/lint-imports

.venv/created:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

.venv/installed: .venv/created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/tested: .venv/created pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build dist runs .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
