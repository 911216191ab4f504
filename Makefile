# `make run`: install (once) and run the main job on the embedded default. `make test`: the same for the tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
INSTALL = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test test-all lint clean

run: $(VENV)/.run
	$(VENV)/bin/python jobs/edit_all_tasks.py --output runs/demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m 'not slow'

test-all: $(VENV)/.test
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.test
	$(VENV)/bin/ruff check .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about 6 GB with torch, a few minutes, once."
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(INSTALL) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs
