# `make quickstart` and `make test` are all a newcomer needs; both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test bench lint format clean setup

quickstart: setup
	$(BIN)/stylegan run configs/quickstart.yaml

test: lint
	$(BIN)/python -m pytest

# Ratios to a plain version of the same networks, about four minutes; BENCH="--resolution 64" and so on for other sizes.
bench: setup
	cd tests && ../$(BIN)/python -m benchmarks.bench $(BENCH)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(STAMP)

# torch first and pinned: a range could bring gigabytes of CUDA libraries to a machine without a GPU.
$(STAMP): pyproject.toml constraints.txt tests/reference.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found `$(PYTHON) -V`. Set PYTHON=/path/to/python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check `grep '^torch==' constraints.txt`
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/reference.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
