# `make fit` and `make test` work on a bare clone: they set everything up themselves, in .venv.

PYTHON ?= python3
BIN := .venv/bin
JOBS ?= 3  # on two cores: some tests wait, for Ray or a server
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
PYTEST := $(BIN)/pytest -n $(JOBS) --dist worksteal

unexport PYTHONDONTWRITEBYTECODE  # a module is compiled when it is first imported, and only then

.PHONY: fit results-quick test test-full check mutants help docs faults browser format clean

# --- to use ----------------------------------------------------------------------------------------------------------

fit: .venv/installed
	$(BIN)/worldmodel fit --config conf/quickstart.yaml

results-quick: .venv/installed  # a small version of docs/results, in a few minutes; an interrupted one resumes
	$(BIN)/worldmodel compare --config conf/linear.yaml --rules residual,gated_norm --start carry,zero --seeds 0,1 \
		--trainer.max_steps 1000 --out runs/results-quick

# --- to change -------------------------------------------------------------------------------------------------------

test: .venv/installed-dev browser  # what CI runs; the static checks run beside the tests, and are shown after them
	$(BIN)/ruff check && $(BIN)/ruff format --check
	@($(BIN)/pyright && $(BIN)/lint-imports) > .venv/check.log 2>&1 & checks=$$!; \
	$(PYTEST); tests=$$?; \
	wait $$checks; checks=$$?; cat .venv/check.log; \
	exit $$((tests || checks))

test-full: .venv/installed-dev browser  # the exhaustive forms of the tests too: about an hour
	$(PYTEST) --full

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

mutants: .venv/installed-dev  # whether the tests notice each mistake of tests/mutants.txt: a few minutes
	$(BIN)/python tests/mutants.py

help: .venv/installed-dev  # writes worldmodel/help.json, the help that is shown without importing torch
	PYTHONPATH=tests $(BIN)/python tests/help_pages.py

docs: .venv/installed-docs  # the pages and an API reference, in build/docs; a warning or a broken link is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning docs build/docs

faults: .venv/installed-dev  # makes every fault of docs/reliability.md happen, and writes its table: half an hour
	$(BIN)/python benchmarks/faults.py

browser: .venv/installed-dev  # for the tests of reports: installs one in .venv where none is on PATH
	$(BIN)/python tests/browser.py

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build *.egg-info

# --- set-up ----------------------------------------------------------------------------------------------------------

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

.venv/installed-docs: .venv/installed
	$(PIP) --editable '.[docs]'
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	touch .venv/installed $@
