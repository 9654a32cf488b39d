# make install | demo | test | test-all | lint | format | docs | lock | soak | clean. Needs Python 3.11 to 3.13 with venv, git and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOCKED := -r requirements.txt -r requirements-dev.txt
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps
PARALLEL := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# One resolution for every Python that the project supports, with markers where they differ.
LOCK = --universal --python-version 3.11 --quiet --custom-compile-command "make lock" $(UPGRADE)
.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format docs lock soak clean

help:  ## show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP)  ## make the environment in .venv

# The lock names every package, so nothing is to be resolved. uv fetches and unpacks several at a time, but does not read
# pip's settings (files and PIP_... alike): where those name another index or none, and where uv fails, pip installs.
$(STAMP): requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "make: PYTHON: received $(PYTHON); give one of Python 3.11 to 3.13, as in: make install PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint requirements-dev.txt uv
	! $(BIN)/python -m pip config list | grep -E '\.(index-url|no-index)=' > /dev/null && \
	  $(UV_INSTALL) $(LOCKED) || $(BIN)/python -m pip install --quiet --no-deps $(LOCKED)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m pip check
	@touch $(STAMP)

demo: install  ## train, attack and export on handwritten digits, in under five minutes
	$(BIN)/python training/run.py

test: install  ## run the tests that matter most, in about five minutes
	$(BIN)/python -m pytest tests -m "not (slow or soak)" $(PARALLEL)

test-all: install  ## run the slow tests, the tests of several processes, and the notebooks cut short
	CIFS_SMOKE=1 $(BIN)/python -m pytest tests notebooks --nbmake --nbmake-timeout 900 \
	  -m "slow and not soak" $(PARALLEL)

lint: install  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## put code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install  ## build the documentation into site/, warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: install  ## write requirements.txt and requirements-dev.txt anew; UPGRADE=--upgrade takes the newest versions
	$(BIN)/uv pip compile pyproject.toml --all-extras $(LOCK) -o requirements.txt
	$(BIN)/uv pip compile --group dev -c requirements.txt $(LOCK) -o requirements-dev.txt

soak: install  ## run what is too long for CI: every recording, many kills, notebooks at full size
	$(BIN)/python -m pytest tests -m soak -rA
	$(BIN)/python -m pytest notebooks --nbmake --nbmake-timeout 900

clean:  ## remove the environment and caches; runs stay
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis build site
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
