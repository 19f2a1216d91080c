# `make quickstart` and `make test` are all a newcomer needs; both set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: quickstart test bench bench-training bench-evaluation bench-metrics bench-data lint format clean setup

quickstart: setup
	$(BIN)/stylegan run configs/quickstart.yaml

# Modules in the order of the folders, one by one to a process for each core: the long ones (integration) come before the many short.
test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

# Ratios to plain versions of the same, about a quarter of an hour: bench-training (four minutes), bench-evaluation (three) and
# bench-data, loading and sharding (six). bench-metrics, what metrics cost once the features are there, takes three more. For other
# sizes give one of them options, BENCH="--resolution 64"; BENCH=--help lists them.
bench: bench-training bench-evaluation bench-data

bench-training: setup
	cd tests && ../$(BIN)/python -m benchmarks.bench $(BENCH)

bench-evaluation: setup
	cd tests && ../$(BIN)/python -m benchmarks.bench_evaluation $(BENCH)

bench-metrics: setup
	cd tests && ../$(BIN)/python -m benchmarks.bench_metrics $(BENCH)

bench-data: setup
	cd tests && ../$(BIN)/python -m benchmarks.bench_data $(BENCH)

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
