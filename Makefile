# make run     set up .venv and do the main job: train an agent with PPO on knowledge QA, print the before/after table
# make test    set up .venv and run the tests (make test-slow: the long ones too)
# make check   formatting, lint and types

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt
OUT ?= runs/knowledge-qa
SEED ?= 0

.PHONY: run test test-slow test-lowest check format benchmark clean

run: $(VENV)/.installed
	$(BIN)/textgym train textgym/KnowledgeQA-v0 --seed $(SEED) --out $(OUT)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow or not slow"

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# TORCH=torch==... where the lowest torch cannot be had
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	grep -v "^torch==" constraints-lowest.txt > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet $(or $(TORCH),$(shell grep "^torch==" constraints-lowest.txt))
	.venv-lowest/bin/python -m pip install --quiet --constraint .venv-lowest/constraints.txt --editable ".[dev]"
	.venv-lowest/bin/python -m pytest

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
