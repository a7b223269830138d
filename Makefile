# `make fit` and `make test` work on a bare clone and do all of their own set-up, in .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: fit test check browser docs results-quick faults format clean

fit: .venv/installed
	$(BIN)/worldmodel fit --config conf/quickstart.yaml

test: check browser
	$(BIN)/pytest -n 2

docs: .venv/installed-docs  # the pages and an API reference, in build/docs; a warning or a broken link is an error
	$(BIN)/sphinx-build --quiet --fail-on-warning docs build/docs

results-quick: .venv/installed  # a small version of docs/results, in a few minutes; goes on where it was interrupted
	$(BIN)/worldmodel compare --config conf/linear.yaml --rules residual,gated_norm --start carry,zero --seeds 0,1 \
		--trainer.max_steps 1000 --out runs/results-quick

faults: .venv/installed-dev  # makes nineteen faults happen, in full, and writes docs/reliability.md; about half an hour
	$(BIN)/python benchmarks/faults.py

check: .venv/installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

browser: .venv/installed-dev  # for the tests of reports; gets one, without root, where none is on PATH
	$(BIN)/python tests/browser.py

format: .venv/installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

.venv/installed-docs: .venv/installed
	$(PIP) --editable '.[docs]'
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	touch $@
