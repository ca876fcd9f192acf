# flowbench: `make help` lists the targets. The environment is made by the first that needs it.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SCALE  ?= quick
STUDY  ?=
STORAGE ?=
ARGS   ?=
GPU_PYTHON ?= python3
SHARED := -n logical --maxprocesses 4 --dist worksteal  # several processes share the tests

SWEEPS := sweep-bins sweep-blocks sweep-blocks-matched sweep-layers sweep-learning-rate sweep-search \
          sweep-timing sweep-sampling sweep-start sweep-orders sweep-functions sweep-depth \
          sweep-colour sweep-ood sweep-scaling

.PHONY: help install test test-all check gpu-check train compare-affine-rqs $(SWEEPS) bench report ui dashboard clean

help: ## Show this list
	@echo "usage: make TARGET [SCALE=quick|medium|full] [STUDY=name] [ARGS='further options']"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flowbench needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "setting up $(VENV): a few minutes and 6 GB the first time, most of it torch"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY) ## Make the environment in .venv (again only when its files change)

test: $(READY) ## Run the fast tests (3 to 6 minutes on 2 cores)
	$(BIN)/pytest $(SHARED) $(ARGS)

test-all: $(READY) ## Run all tests, the slow ones too (10 to 15 minutes on 2 cores)
	$(BIN)/pytest $(SHARED) -m "not gpu" $(ARGS)

gpu-check: ## Measure this machine's GPU into results/gpu, in 8 minutes: needs torch and lightning only
	$(GPU_PYTHON) -m flowbench.bench.gpu $(ARGS)

check: $(READY) ## Lint, check the format and the types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

train: $(READY) ## Train one flow: make train ARGS='--model.transform rqs-8 --model.blocks 4'
	$(BIN)/flowbench train $(ARGS)

compare-affine-rqs: $(READY) ## Affine against splines of 4 and 8 bins: run what is missing, report
	$(BIN)/flowbench sweep sweeps/$@.yaml --scale $(SCALE) $(ARGS)

sweep-bins: ## How many bins: run what is missing with a worker a core or GPU, report
sweep-blocks: ## How many blocks, of as many layers each
sweep-blocks-matched: ## How many blocks, of as many layers in all
sweep-layers: ## How many layers in each block
sweep-learning-rate: ## Which learning rate suits each transform
sweep-search: ## Search transform, size and learning rate for loss and time together
sweep-timing: ## Seconds per epoch; the flows take turns, alone on the machine
sweep-sampling: ## Guided and denoised samples of affine and spline flows
sweep-start: ## Does it help to transform the first patch of a block too
sweep-orders: ## In which order the blocks should take the patches
sweep-functions: ## Which monotone function should stand in place of the affine one
sweep-depth: ## Of 8 layers in all, how many in which block
sweep-scaling: ## How should a budget of training FLOPs be spent
sweep-colour: ## Does the advantage of splines grow with the variance of the pixels
sweep-ood: ## Does the likelihood tell images of another kind from its own
$(SWEEPS): sweep-%: $(READY)
	$(BIN)/flowbench sweep sweeps/$*.yaml --scale $(SCALE) $(ARGS)

bench: $(READY) ## Run the benchmarks that need no trained run, alone on the machine: half an hour
	for subject in transform train sample sweep report start; do \
	  $(BIN)/flowbench bench $$subject $(ARGS) || exit 1; \
	done

report: $(READY) ## Make the page over all studies, or a study's report: make report STUDY=name
	$(BIN)/flowbench report $(STUDY) $(ARGS)

ui: $(READY) ## Browse the recorded runs on http://127.0.0.1:5000
	$(BIN)/flowbench ui $(ARGS)

dashboard: $(READY) ## Browse a study's trials on Optuna's pages: make dashboard STUDY=bins/quick
	@$(BIN)/pip show -q optuna-dashboard 2>/dev/null || $(BIN)/pip install -q -c constraints.txt -e '.[dashboard]'
	@mkdir -p results/optuna/artifacts
	$(BIN)/optuna-dashboard --host 127.0.0.1 --artifact-dir results/optuna/artifacts $(or $(STORAGE),results/optuna/$(or $(STUDY),compare-affine-rqs/quick).log) $(ARGS)

clean: ## Remove the environment and caches; recorded results stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find flowbench tests -name __pycache__ -prune -exec rm -rf {} +
