# Each target sets up .venv first if it is missing or its inputs changed. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
QUESTION ?= What is 2+2?

.PHONY: help demo studio serve bench test test-unit lint format lock setup clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(READY) ## Answer a question with a TorchAO int8 model in vLLM
	@echo '$$ $(BIN)/chancellor ask "$(QUESTION)" --temperature 0'
	@$(BIN)/chancellor ask "$(QUESTION)" --temperature 0

# Without --n-jobs-per-worker its server runs one at a time (whatever its help says), and engines have nothing to batch.
studio: $(READY) ## Serve the graph for LangGraph Studio (reloads when a file changes; Ctrl-C ends it)
	$(BIN)/langgraph dev --no-browser --n-jobs-per-worker 32

serve: $(READY) ## Serve the demo's models over OpenAI's protocol, with a page to try it (Ctrl-C ends it)
	@$(BIN)/chancellor serve

bench: $(READY) ## Measure the demo model through the graph, beside the engine driven directly: build/bench.html
	@$(BIN)/chancellor bench --against raw --json build/bench.json --report build/bench.html

test: $(READY) ## Run all tests, real engines included (an hour on 2 cores)
	$(BIN)/python -m pytest

test-unit: $(READY) ## Run the tests that start no engine (8 minutes)
	$(BIN)/python -m pytest tests/unit

lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: ## Resolve requirements/*.txt anew (needs uv on the PATH)
	requirements/lock.sh

setup: $(READY) ## Only set up .venv

clean: ## Remove .venv
	rm -rf $(VENV)

$(READY): pyproject.toml requirements/cpu.txt requirements/demo.txt requirements/install.sh
	PYTHON=$(PYTHON) requirements/install.sh $(VENV)
	@touch $@
