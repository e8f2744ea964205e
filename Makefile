# Every target sets up .venv by itself on a fresh machine and reuses it after; `make help` lists them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# two files at a time, in the order of tests/conftest.py; with one thread each, as threads of two processes get in each
# other's way
TESTS := OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder
FRESH := build/fresh
AS_ROOT := $(shell test "$$(id -u)" = 0 || echo sudo)

.PHONY: help demo test test-all chromium runtime lint docs dist bench reproduce reproduce-steel reproduce-large claims \
  table cards peer-tests kills notebooks clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 17

$(STAMP): pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@

demo: $(STAMP) ## train a small CAPE network on generated lesions (two minutes) and explain test images: demo_output/
	$(RUN) train_accelerate.py --recipe lesions-demo --output demo_output --overwrite

test: $(STAMP) ## the fast tests
	$(TESTS) -m "not slow"

test-all: $(STAMP) chromium runtime ## all tests: also fresh processes and the sweep over every family
	$(TESTS)

chromium: ## Debian's browser, which the tests of the demo page drive; installed where there is none
	@command -v chromium > /dev/null \
	  || { $(AS_ROOT) apt-get update -qq && $(AS_ROOT) apt-get install -y -qq --no-install-recommends chromium; } \
	  || { echo "Chromium cannot be installed here (it takes apt-get, a network, and root or sudo):" \
	       "install it by hand as 'chromium', or run 'make test', which needs no browser" >&2; exit 1; }

runtime: $(STAMP) ## onnxruntime-web of the npm registry, which the tests of the web page run; fetched if missing
	$(RUN) -m tools.fetch_runtime

lint: $(STAMP) ## ruff, mypy, and the model cards against their rows
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(RUN) -m tools.render_cards --check

docs: $(VENV)/.docs ## build the documentation into site/; a warning is an error
	$(VENV)/bin/mkdocs build --strict --quiet

$(VENV)/.docs: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@

dist: $(STAMP) ## build sdist and wheel, check them, and run README's snippet with the wheel in a fresh environment
	$(RUN) -m pip install --quiet --disable-pip-version-check build twine
	rm -rf dist $(FRESH)
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*
	$(PYTHON) -m venv $(FRESH)/venv
	$(FRESH)/venv/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl pytest
	mkdir $(FRESH)/source  # the tests of the sdist, without its softcam_hub/: only the wheel has the package
	tar -xzf dist/*.tar.gz -C $(FRESH)/source --strip-components=1 --exclude='softcam_hub-*/softcam_hub'
	cd $(FRESH)/source && ../venv/bin/python -m pytest tests/test_docs.py -k snippet

bench: $(STAMP) ## measure speed side by side, then derive the tables of README and docs/ from the rows
	$(RUN) -m benchmarks.speed.heads
	$(RUN) -m benchmarks.speed.alignment
	$(RUN) -m benchmarks.speed.import_time
	$(RUN) -m benchmarks.speed.training
	$(RUN) -m benchmarks.speed.training_steps
	$(RUN) -m benchmarks.speed.memory
	$(RUN) -m benchmarks.speed.explainers
	$(RUN) -m benchmarks.speed.peer_table
	$(RUN) -m benchmarks.tables
	$(RUN) -m benchmarks.reproduction.claims

reproduce: $(STAMP) ## put the papers' claims to the test (six hours of two cores): docs/reproduction.md
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.reproduction.reproduce
	$(RUN) -m benchmarks.reproduction.claims

reproduce-steel: $(STAMP) ## the same on photographs of steel: make reproduce-steel PHOTOGRAPHS=folder of NEU-DET
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.reproduction.reproduce --photographs "$(PHOTOGRAPHS)"
	$(RUN) -m benchmarks.reproduction.claims

reproduce-large: $(STAMP) ## the same with ResNet-50, VGG-16 and SwinV2, for a GPU
	$(RUN) -m benchmarks.reproduction.reproduce --large
	$(RUN) -m benchmarks.reproduction.claims

claims: $(STAMP) ## derive docs/reproduction.md, docs/sparsity.md, docs/post_fitting.md and their curves from the rows
	$(RUN) -m benchmarks.reproduction.claims
	$(RUN) -m benchmarks.sparsity.page
	$(RUN) -m benchmarks.post_fit.page

table: $(STAMP) ## examine every architecture of the installed timm again
	$(RUN) -m tools.probe_timm

cards: $(STAMP) ## render the model cards from their rows
	$(RUN) -m tools.render_cards

peer-tests: $(STAMP) ## run the test suites of timm and transformers on our models (three hours): docs/compatibility.md
	$(RUN) tools/peer_tests

kills: $(STAMP) ## kill commands at random moments, 50 times in all (three minutes): table in docs/outputs.md
	OMP_NUM_THREADS=1 $(RUN) -m tools.kills
	$(RUN) -m benchmarks.tables

notebooks: $(STAMP) ## run the tutorials, and keep their outputs and the time that they take (three minutes)
	$(RUN) -m tools.notebooks
	$(RUN) -m benchmarks.tables

clean: ## remove the virtual environment and what was made
	rm -rf $(VENV) .peers build dist demo_output site .pytest_cache .ruff_cache .mypy_cache
