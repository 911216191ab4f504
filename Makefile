# `make run`: install (once) and run the main job on the embedded default. `make test`: the same for the tests.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
UV = $(VENV)/bin/python -m uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python --constraint constraints.txt

.PHONY: run quick test test-all test-newest-ray lint docs clean

run: $(VENV)/.run
	$(VENV)/bin/python jobs/edit_all_tasks.py --output runs/demo

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m 'not slow'

test-all: $(VENV)/.test
	$(VENV)/bin/python -m pytest

# Style, types, and the tests that need neither Ray nor a long time.
quick: lint
	$(VENV)/bin/python -m pytest -q -m 'not slow' tests/core tests/report tests/test_config.py tests/test_gate.py tests/test_progress.py

# With the newest Ray of the registry, which pyproject.toml does not allow yet: what would have to change?
test-newest-ray:
	$(PYTHON) -m venv .venv-newest-ray
	.venv-newest-ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	.venv-newest-ray/bin/python -m pip install --quiet --disable-pip-version-check --upgrade 'ray[default,train,tune]'
	.venv-newest-ray/bin/python -m pytest -m 'not slow' tests/orchestrate tests/cluster

# Style, and strict types. The package's own cache makes the second time short.
lint: $(VENV)/.test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check talos_ray
	$(VENV)/bin/mypy

# uv unpacks and compiles several packages at a time, where pip takes one after another; pip goes on where only its own
# settings know the index. Compiled here, because where PYTHONDONTWRITEBYTECODE is set every process would do it anew.
define install
	$(UV) --editable $(1) || $(PIP) --editable $(1)
endef

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) uv

$(VENV)/.run: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV): about 6 GB with torch, a few minutes, once."
	$(call install,.)
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(call install,'.[dev]')
	@touch $@

# The documentation as a site, in site/.
docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) runs site
