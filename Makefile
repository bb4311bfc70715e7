# Two commands for newcomers (train, test), the rest for those who stay. PYTHON may name another python3 (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test install check proof bench answers package clean

train: install  ## install, then train the default recipe on the embedded corpus
	$(BIN)/hectogpt train

test: .venv/.test  ## install what tests need, then run them all
	$(BIN)/python -m pytest -n 2 --dist worksteal

install: .venv/.install

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, $$($(PYTHON) --version) found"; \
	    echo "fix: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.install: .venv/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[explore]'
	@touch $@

.venv/.test: .venv/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/.install

check: .venv/.test  ## what pre-commit runs: formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

proof: .venv/.test  ## proves what docs/reliability.md promises, under ten minutes; writes its table
	$(BIN)/python tests/faults

bench: .venv/.test  ## side-by-side timings, 15 minutes, appended to results/bench.jsonl; fills docs/performance.md
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m bench
	$(BIN)/python -m bench --page

answers: install  ## figures and PDF of answers/
	$(BIN)/python -m tools.answers

package: .venv/.test  ## wheel and source archive in dist/, built from the tracked files and checked
	$(BIN)/python -m tools.package

clean:
	rm -rf .venv build dist *.egg-info
