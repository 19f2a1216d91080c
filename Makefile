# `make quickstart` and `make test` are all a newcomer needs; both set up .venv by themselves. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Triton comes with torch's CUDA builds. Beside its CPU build it is kept out of .venv, because torch behaves otherwise where
# it finds Triton. This is the version that the kernels were tested with.
TRITON := triton==3.6.0
# Needed for one target each, and not to be mixed with what the product imports.
PIP_AUDIT := pip-audit==2.10.1
KUBERNETES_VALIDATE := kubernetes-validate==1.37.0

.PHONY: help quickstart notebook test test-fast test-kernels test-manifests long-test stack-test audit bench bench-training bench-evaluation bench-data \
	bench-metrics bench-intervals bench-compare bench-tracking bench-serving bench-passes bench-gpu kill-test lint format \
	config-reference metric-names manifests image image-lock setup clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-18s %s\n", $$1, $$2}' Makefile

quickstart: setup ## Train on handwritten digits, evaluate and register: the whole pipeline in minutes
	$(BIN)/stylegan run configs/quickstart.yaml

notebook: quickstart ## Run configs/quickstart.ipynb on the finished quickstart and keep its outputs in the file
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt nbclient ipykernel
	$(BIN)/python tests/run_notebook.py

# Whole modules go to one process for each core, in the order of the folders: the long ones (integration) come first.
test: lint ## Check style and types and run the tests with real engines, all but those of long-test and stack-test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder -m "not long and not stack"

long-test: setup ## Run the long tests of the engines together: clusters, jobs, schedules, signals, kills, S3, backup, secrets: an hour
	$(BIN)/python -m pytest -m long

stack-test: setup ## Run the tests of the stack of infra/stack.sh: its commands, its servers, services killed in a run: twenty minutes
	$(BIN)/python -m pytest -m stack

test-fast: setup ## Run the tests that start no engine (Ray, Prefect, MLflow, S3) and train nothing: under two minutes
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadscope -m "not engine and not slow and not long and not stack"

test-kernels: $(VENV)/triton/.installed ## Test the GPU kernels on this CPU, interpreted, and compile them for GPUs: minutes, 640 MB
	PYTHONPATH=$(abspath $(VENV))/triton TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/networks/test_kernels.py \
		tests/benchmarks/test_passes.py tests/training/test_recorded_kernels.py

$(VENV)/triton/.installed: $(STAMP) Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) $(TRITON)
	@touch $@

test-manifests: $(VENV)/kubernetes/.installed ## Test infra/k8s and the manifests by the schemas of Kubernetes: a minute, 110 MB
	PYTHONPATH=$(abspath $(VENV))/kubernetes $(BIN)/python -m pytest tests/infra/test_kubernetes.py

$(VENV)/kubernetes/.installed: $(STAMP) Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade --target $(@D) $(KUBERNETES_VALIDATE)
	@touch $@

audit: $(VENV)/audit/.installed ## Look up known vulnerabilities of the pinned packages; needs the internet
	PYTHONPATH=$(abspath $(VENV))/audit $(BIN)/python infra/audit.py constraints.txt

$(VENV)/audit/.installed: $(STAMP) Makefile
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade --target $(@D) $(PIP_AUDIT)
	@touch $@

# For other sizes give one of the benchmarks options, BENCH="--resolution 64"; BENCH=--help lists them.
bench: bench-training bench-evaluation bench-data ## Measure ratios to plain versions of the same: a quarter of an hour

bench-training: setup ## ... of training steps and inference, StyleGAN's and the ResNet pair's: eight minutes
	cd tests && ../$(BIN)/python -m benchmarks.bench $(BENCH)
	$(if $(BENCH),,cd tests && ../$(BIN)/python -m benchmarks.bench --architecture resnet --rotation --top 0)

bench-evaluation: setup ## ... of the evaluation engine: three minutes
	cd tests && ../$(BIN)/python -m benchmarks.bench_evaluation $(BENCH)

bench-data: setup ## ... of loading and sharding: six minutes
	cd tests && ../$(BIN)/python -m benchmarks.bench_data $(BENCH)

bench-metrics: setup ## ... of metrics once the features are there: three minutes
	cd tests && ../$(BIN)/python -m benchmarks.bench_metrics $(BENCH)

bench-intervals: setup ## ... of how wide the intervals of metrics are, against chance: three minutes
	cd tests && ../$(BIN)/python -m benchmarks.bench_intervals $(BENCH)

bench-compare: setup ## ... of `stylegan compare` with 20 runs, against its goals for time and memory: two minutes
	cd tests && PYTHONPATH=..:. ../$(BIN)/python -m benchmarks.bench_compare $(BENCH)

bench-tracking: setup ## ... of our queries and MLflow's pages in an experiment of 200 runs: five minutes
	cd tests && PYTHONPATH=.. ../$(BIN)/python -m benchmarks.bench_tracking $(BENCH)

bench-serving: setup ## ... of a recorded generator, as it is served, to one that is not: a minute
	cd tests && ../$(BIN)/python -m benchmarks.bench_serving $(BENCH)

bench-passes: $(VENV)/triton/.installed ## Count what a step makes a GPU do, without one: passes over memory, products; a minute, 640 MB
	cd tests && PYTHONPATH=$(abspath $(VENV))/triton:..:. ../$(BIN)/python -W ignore -m benchmarks.passes $(BENCH)

bench-gpu: setup ## ... of training on one GPU, with floors: at most eight minutes; needs torch in the build for the GPU
	cd tests && ../$(BIN)/python -m benchmarks.bench_gpu $(BENCH)

kill-test: setup ## Kill parts of a stage on a cluster at random and compare its weights with an undisturbed run: half an hour
	cd tests && PYTHONPATH=..:. ../$(BIN)/python -m benchmarks.kills $(KILLS)

lint: setup ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## Format the code and fix what can be fixed without thought
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

config-reference: setup ## Write configs/README.md's list of keys and configs/config.schema.json anew
	$(BIN)/python -m stylegan.config.reference

metric-names: setup ## Write the table of metrics in stylegan/tracking/README.md anew
	$(BIN)/python -m stylegan.tracking.metric_names

# The examples of infra/README.md: the published FFHQ run on a cluster of one's own. `tests/infra` notices old ones.
EXAMPLE := $(BIN)/stylegan manifest configs/ffhq-1024.yaml --set tracking.uri=http://mlflow.mlflow.svc:5000 \
	--image registry.example.com/stylegan:0.1.0
manifests: setup ## Write infra/k8s and infra/ray anew
	$(EXAMPLE) --kind rayjob --secret stylegan --out infra/k8s/rayjob.yaml
	$(EXAMPLE) --kind raycronjob --secret stylegan --schedule "0 3 * * 1" --out infra/k8s/raycronjob.yaml
	$(EXAMPLE) --kind raycluster --secret stylegan --workers-per-node 8 --out infra/k8s/raycluster.yaml
	$(EXAMPLE) --kind cluster-yaml --provider aws --region eu-central-1 --workers-per-node 8 --instance-type g6e.48xlarge \
		--out infra/ray/cluster.yaml

# Target cpu needs a place with torch's builds for CPUs: PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS. See infra/image/README.md.
TARGET ?= cpu
DOCKER ?= docker
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image: ## Build the image, for CPUs or with TARGET=cuda; DOCKER=buildah and podman do it, too
	$(DOCKER) build --file infra/image/Dockerfile --target $(TARGET) --tag stylegan:$(VERSION)-$(TARGET) \
		--build-arg VERSION=$(VERSION) --build-arg COMMIT=$$(git rev-parse HEAD) \
		--build-arg PIP_INDEX_URL --build-arg PIP_EXTRA_INDEX_URL --build-arg PIP_FIND_LINKS $(IMAGE_OPTIONS) .

image-lock: setup ## Write the image's locks anew, after a change of pyproject.toml or constraints.txt
	$(BIN)/python -m infra.image.lock

setup: $(STAMP) ## Install everything into .venv

$(STAMP): pyproject.toml constraints.txt tests/reference.txt infra/install.py
	@command -v $(PYTHON) >/dev/null || { echo "set-up: there is no $(PYTHON); install Python 3.11 or newer, or add PYTHON=/path/to/it to the command" >&2; exit 2; }
	@$(PYTHON) infra/install.py $(VENV)
	@touch $@

clean: ## Remove .venv and all caches of tools
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
