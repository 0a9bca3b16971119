# Two commands do everything: `make demo` and `make test`. Both make their own virtual environment first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help demo test slow lint types docs bench plots clean

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## the whole loop on a year of real purchases; ARGS="--quick --exit --json"
	@$(BIN)/mainstem demo $(ARGS)

test: $(STAMP)  ## the fast tests, two at a time
	$(BIN)/python -m pytest -n 2 $(ARGS)

slow: $(STAMP)  ## the slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(STAMP)  ## write the generated parts of the manual anew
	$(BIN)/python docs/generate.py

bench: $(STAMP)  ## list the benchmarks, or run one: NAME=p7_ingest
	@if [ -z "$(NAME)" ]; then $(BIN)/python benchmarks/bench.py; else $(BIN)/python benchmarks/$(NAME).py $(ARGS); fi

plots: $(STAMP)  ## draw the benchmarks' results
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/_plots.py $(ARGS)

clean:  ## remove what can be made again (demo data too)
	rm -rf $(VENV) demo-data build .pytest_cache .mypy_cache .ruff_cache .hypothesis
