# Every target sets up .venv by itself on a fresh machine and reuses it after; `make help` lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: help demo test test-all lint bench table clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

$(STAMP): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

demo: $(STAMP) ## train a small CAPE network on generated lesions (two minutes) and explain test images: demo_output/
	$(RUN) train_accelerate.py --recipe lesions-demo --output demo_output --overwrite

test: $(STAMP) ## the fast tests
	$(RUN) -m pytest -m "not slow"

test-all: $(STAMP) ## all tests: also fresh processes and the sweep over every family
	$(RUN) -m pytest

lint: $(STAMP) ## ruff
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: $(STAMP) ## measure speed side by side, then derive README's table from the rows
	$(RUN) benchmarks/heads.py
	$(RUN) benchmarks/import_time.py
	$(RUN) benchmarks/training.py
	$(RUN) benchmarks/tables.py

table: $(STAMP) ## examine every architecture of the installed timm again
	$(RUN) tools/probe_timm.py

clean: ## remove the virtual environment and what was made
	rm -rf $(VENV) demo_output .pytest_cache .ruff_cache
