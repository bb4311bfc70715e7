# Two commands for newcomers (train, test), the rest for those who stay. PYTHON may name another python3 (3.11 to 3.13),
# ENV the folder of its environment: make test PYTHON=python3.13 ENV=.venv313. TORCH=cpu takes the torch without CUDA.
PYTHON ?= python3
ENV ?= .venv
BIN := $(ENV)/bin
# The exact versions that were tested, for this Python; `make versions` renews them.
VERSIONS = $$($(BIN)/python -c 'import sys; print("constraints/py311.txt" if sys.version_info < (3, 12) else "constraints/py313.txt")')
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(VERSIONS) --editable

.PHONY: train test install check proof bench answers site package versions clean

train: install  ## install, then train the default recipe on the embedded corpus
	$(BIN)/hectogpt train

test: $(ENV)/.test  ## install what tests need, then run them all
	$(BIN)/python -m pytest -n 2 --dist worksteal

install: $(ENV)/.install

$(ENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: Python 3.11 to 3.13 is needed, $$($(PYTHON) --version) found"; \
	    echo "fix: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(ENV)
ifdef TORCH
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --constraint $(VERSIONS) \
	  --index-url https://download.pytorch.org/whl/$(TORCH) torch
endif
	@touch $@

$(ENV)/.install: $(ENV)/.python pyproject.toml constraints/py311.txt constraints/py313.txt
	@echo "installing into $(ENV): about 1.5 GB, minutes; CUDA another 4 GB, unless it was made with TORCH=cpu"
	$(INSTALL) '.'
	@touch $@

$(ENV)/.test: $(ENV)/.python pyproject.toml constraints/py311.txt constraints/py313.txt
	@echo "installing into $(ENV): about 2 GB, minutes; CUDA another 4 GB, unless it was made with TORCH=cpu"
	$(INSTALL) '.[dev]'
	@touch $@ $(ENV)/.install

check: $(ENV)/.test  ## what pre-commit runs: formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

proof: $(ENV)/.test  ## tests what docs/reliability.md promises, with many tries; prints its table
	$(BIN)/python tests/faults

bench: $(ENV)/.test  ## side-by-side timings, 15 minutes, appended to results/bench.jsonl; fills docs/performance.md
	$(INSTALL) '.[bench]'
	$(BIN)/python -m bench
	$(BIN)/python -m bench --page

answers: $(ENV)/.test  ## figures and PDF of answers/
	$(BIN)/python -m tools.answers

site: $(ENV)/.install  ## the site in build/site, from README and docs/: warnings are errors, every link is checked
	$(INSTALL) '.[site]'
	$(BIN)/python -m sphinx -q -W --keep-going -E -c docs -d build/site-cache . build/site
	@echo "build/site/index.html"

package: $(ENV)/.test  ## wheel and source archive in dist/, built from the tracked files and checked
	$(BIN)/python -m tools.package

versions:  ## renew the exact versions of PYTHON in constraints/: 3.11 has the oldest torch, 3.13 the newest of all
	rm -rf build/versions && $(PYTHON) -m venv build/versions
	build/versions/bin/python -m pip install --editable '.[dev,site]' $$($(PYTHON) -c 'import re, sys; \
	  print(re.sub(r"(?s).*\"torch>=([\d.]+).*", r"torch==\1.*", open("pyproject.toml").read()) * (sys.version_info < (3, 12)))')
	build/versions/bin/python -m pip freeze --exclude-editable | sed -n 's/^\([A-Za-z0-9._-]*==[^+]*\).*/\1/p' \
	  > constraints/$$($(PYTHON) -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py313")').txt

clean:
	rm -rf .venv .venv313 build dist *.egg-info
