PYTHON ?= python3
BIN := .venv/bin
EXTRAS := envs,sb3,onnx,plots,minari,tracking,dev
PYTEST := $(BIN)/python -m pytest -n 2

.PHONY: demo check quick test tests pytest soak lint docs constraints clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

# Install the newest versions that pyproject.toml allows into an environment of their own, and pin those.
constraints:
	rm -rf build/newest
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --upgrade pip
	build/newest/bin/python -m pip install --quiet --editable '.[$(EXTRAS),docs]'
	build/newest/bin/python -m pip freeze --exclude-editable | sed 's/+[A-Za-z0-9.]*$$//' > constraints.txt
	rm -rf build/newest

demo: .venv/installed
	$(BIN)/trajnote demo

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# A quick check while working: lint, types and contracts beside the tests that are not marked slow.
check: .venv/installed
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint quick

test: .venv/installed
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target lint tests

# Each process has one core, and leaves its bytecode to the many that follow it.
quick tests soak: export OMP_NUM_THREADS := 1
quick tests soak: export PYTHONDONTWRITEBYTECODE :=
# Files of tests lie in memory where 4 GB of it serve as a disk: thousands of small commits wait for no other one.
quick tests soak: export PYTEST_DEBUG_TEMPROOT := $(shell df -Pk /dev/shm 2> /dev/null | \
	awk '$$1 == "tmpfs" && $$4 > 4000000 {print "/dev/shm"}')

quick: .venv/installed
	$(PYTEST) -m "not slow"

# In a make of its own the output comes at once, also beside lint.
tests: .venv/installed
	@$(MAKE) --no-print-directory --output-sync=none pytest

pytest:
	$(PYTEST)

# All tests with every kill and every case of the long checks: before a release, and after a change to what they cover.
soak: .venv/installed
	TRAJNOTE_SOAK=1 $(PYTEST) --timeout=1800

.venv/docs-installed: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: .venv/docs-installed
	$(BIN)/python tests/readme.py --write
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf .venv
