# medfinetune. `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One process per core, at most 4: each holds up to 3 GB. Each takes tests that stand together, which share their
# fixtures. PYTEST_WORKERS=0: all in one process, for a debugger. Slow tests start several processes themselves.
PYTEST_WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow quality style clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(READY) ## Make .venv and install the pinned dependencies into it

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name it with PYTHON=/path/to/python3.11"; exit 1; }
	@echo "making $(VENV) and installing about 2 GB of packages into it; a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
	@echo "installed into $(VENV); try make demo, or read README.md"

demo: $(READY) ## Run the whole job on generated images: data, both models, evaluation (5 to 10 minutes)
	$(BIN)/python recipes/demo.py

test: $(READY) ## Run the tests that are not slow
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --maxprocesses 4 --dist worksteal -m "not slow"

$(VENV)/.slow: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,deepspeed,quantization]'
	@touch $@

test-slow: $(VENV)/.slow ## Run only the slow tests; installs DeepSpeed and bitsandbytes for them
	$(BIN)/python -m pytest -m slow

quality: $(READY) ## Check lint, format and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos

style: $(READY) ## Fix lint and format in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment, the runs and all caches
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
