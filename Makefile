# Two commands for newcomers (train, test), the rest for those who stay. PYTHON may name another python3 (3.11 or newer),
# ENV the folder of its environment: make test PYTHON=python3.14 ENV=.venv314.
# On Linux without an NVIDIA device torch is installed without CUDA. TORCH=cuda or TORCH=cpu names the other build.
PYTHON ?= python3
ENV ?= .venv
BIN := $(ENV)/bin
SYSTEM := $(shell uname -s)
NVIDIA = $(or $(wildcard /dev/nvidia* /proc/driver/nvidia),$(shell nvidia-smi -L 2>/dev/null))
CPU_INDEX = https://download.pytorch.org/whl/cpu
# The exact versions that were tested, for this Python; `make versions` renews them.
VERSIONS = $$($(BIN)/python -c 'import sys; print("constraints/py311.txt" if sys.version_info < (3, 12) else "constraints/py314.txt")')
PIP = $(BIN)/python -m pip install --disable-pip-version-check
INSTALL = $(PIP) --constraint $(VERSIONS)

.PHONY: train test install check proof bench answers site package versions clean

train: install  ## install, then train the default recipe on the embedded corpus
	$(BIN)/hectogpt train

test: $(ENV)/.test  ## install what tests need, then run them all
	$(BIN)/python -m pytest -n 2 --dist worksteal

install: $(ENV)/.install

# pip 25.1 knows groups, and shows how far it is while it unpacks.
$(ENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed, $(PYTHON) is $$($(PYTHON) --version)"; \
	    echo "fix: make PYTHON=/path/to/python3.14 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(ENV)
	$(PIP) --quiet 'pip>=25.1'
	@touch $@

# Whether a server answers within 4 seconds. A timer, as a look-up of a name has no limit of its own.
ANSWERS = $(BIN)/python -c 'import os, sys, threading, urllib.request; timer = threading.Timer(4, os._exit, [1]); \
  timer.daemon = True; timer.start(); urllib.request.urlopen(sys.argv[1])' 2>/dev/null

$(ENV)/.torch: $(ENV)/.pip
	@build="$(TORCH)"; \
	if [ -z "$$build" ] && [ "$(SYSTEM)" = Linux ]; then \
	  if [ -n "$(NVIDIA)" ]; then \
	    echo "torch with CUDA, for the NVIDIA device here: 2.7 GB to download (without CUDA 0.2 GB: TORCH=cpu)"; \
	  elif $(ANSWERS) $(CPU_INDEX)/torch/; then \
	    echo "torch without CUDA, as there is no NVIDIA device: 0.2 GB to download (with CUDA 2.7 GB: TORCH=cuda)"; \
	    build=cpu; \
	  else \
	    echo "torch as pip finds it, usually with CUDA, 2.7 GB to download: $(CPU_INDEX) does not answer"; \
	  fi; \
	fi; \
	$(INSTALL) --no-deps $$([ "$$build" != cpu ] || echo --index-url $(CPU_INDEX)) torch
	@touch $@

$(ENV)/.install: $(ENV)/.torch pyproject.toml constraints/py311.txt constraints/py314.txt
	@echo "installing into $(ENV): minutes; 1.5 GB on disk, 5.5 GB with CUDA"
	$(INSTALL) --editable '.[vocab]'
	@touch $@

$(ENV)/.test: $(ENV)/.torch pyproject.toml constraints/py311.txt constraints/py314.txt
	@echo "installing into $(ENV): minutes; 2 GB on disk, 6 GB with CUDA"
	$(INSTALL) --editable . --group dev
	@touch $@ $(ENV)/.install

check: $(ENV)/.test  ## what pre-commit runs (formatting, lint, types), then the workflows and the lock of uv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/uv lock --check --quiet

proof: $(ENV)/.test  ## tests what docs/reliability.md promises, with many tries; prints its table
	$(BIN)/python tests/faults

bench: $(ENV)/.test  ## side-by-side timings, 15 minutes, appended to results/bench.jsonl; fills docs/performance.md
	$(INSTALL) --group bench
	@$(BIN)/python -c 'import llama_cpp' 2>/dev/null || \
	  { echo "compiling llama.cpp: minutes"; $(INSTALL) --quiet llama-cpp-python; } || \
	  echo "llama.cpp could not be built; the rows of it will say that it is missing"
	$(BIN)/python -m bench; code=$$?; $(BIN)/python -m bench --page && exit $$code

answers: $(ENV)/.test  ## figures and PDF of answers/
	$(BIN)/python -m tools.research.answers

site: $(ENV)/.install  ## the site in build/site, from README and docs/: warnings are errors, every link is checked
	$(INSTALL) --group site
	$(BIN)/python -m sphinx -q -W --keep-going -E -c docs -d build/site-cache . build/site
	@echo "build/site/index.html"

package: $(ENV)/.test  ## wheel and source archive in dist/, built from the tracked files and checked
	$(BIN)/python -m tools.package

versions:  ## renew the exact versions of PYTHON in constraints/: 3.11 has the oldest torch, 3.14 the newest of all
	rm -rf build/versions && $(PYTHON) -m venv build/versions
	build/versions/bin/python -m pip install 'pip>=25.1'
	build/versions/bin/python -m pip install --editable '.[tensorboard]' --group dev --group site transformer-lens nnsight $$($(PYTHON) -c 'import re, sys; \
	  print(re.sub(r"(?s).*\"torch>=([\d.]+).*", r"torch==\1.*", open("pyproject.toml").read()) * (sys.version_info < (3, 12)))')
	build/versions/bin/python -m pip freeze --exclude-editable | sed -n 's/^\([A-Za-z0-9._-]*==[^+]*\).*/\1/p' \
	  > constraints/$$($(PYTHON) -c 'import sys; print("py311" if sys.version_info < (3, 12) else "py314")').txt
	build/versions/bin/uv lock --upgrade

clean:
	rm -rf .venv .venv314 build dist *.egg-info
