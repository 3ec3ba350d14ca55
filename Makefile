# The two commands are `make demo` and `make test`; `make` alone lists them all.
# Needs Python 3.11 or newer with pip and venv. Another interpreter: make demo PYTHON=python3.12

PYTHON ?= python3
DEMO := minivllava demo

VENV := .venv
BIN := $(VENV)/bin
LOCK := .ci/constraints.txt
INSTALL := $(BIN)/python -m pip install --constraint $(LOCK)
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb notebooks/assignments/*.ipynb))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help demo test lab notebooks execute lint lock clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' Makefile

demo: $(VENV)/.core ## install into .venv, train and evaluate the tiny model, say where the report is
	$(BIN)/$(DEMO)

test: $(VENV)/.test ## install the test tools too and run the whole suite, notebooks included
	$(BIN)/python -m pytest
	$(if $(NOTEBOOKS),@$(MAKE) --no-print-directory notebooks)

lab: $(VENV)/.lab ## install JupyterLab too and open the notebooks
	$(BIN)/python -m jupyterlab --notebook-dir=notebooks notebooks/00_start_here.ipynb

# A run of its own: the suite's settings (no display, caches in a temporary folder) are not a reader's.
notebooks: $(VENV)/.test ## run every notebook and compare its outputs with the stored ones
	$(if $(NOTEBOOKS),HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -p tests.nbval_stderr \
		--nbval --nbval-current-env --nbval-cell-timeout=300 \
		--nbval-sanitize-with=tests/nbval_sanitize.cfg $(NOTEBOOKS),@echo "There are no notebooks yet.")

execute: $(VENV)/.test ## run every notebook and store its outputs anew (NOTEBOOKS=... names some)
	$(INSTALL) nbconvert
	HF_HUB_OFFLINE=1 $(BIN)/python -m nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False $(NOTEBOOKS)

lint: $(VENV)/.test ## check the style of code and notebooks with ruff
	$(BIN)/ruff check .

lock: ## resolve all dependencies afresh (needs Python 3.11) and rewrite .ci/constraints.txt
	$(PYTHON) .ci/lock.py $(LOCK)

clean: ## remove .venv, build leftovers and tool caches; runs/ and data/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find minivllava tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv writes: where it is missing, an earlier try was cut short.
$(BIN)/pip:
	@command -v '$(PYTHON)' >/dev/null || { echo >&2 \
		"'$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else \
		"minivllava needs Python 3.11 or newer, but $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.11" \
		% sys.version_info[:2])'
	@'$(PYTHON)' -m venv --clear $(VENV) || { echo >&2 \
		"$(PYTHON) could not make $(VENV): it lacks venv or pip (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }

# torch first and alone: whichever build of the locked version is at hand, CPU or CUDA, the rest then accepts it.
$(VENV)/.torch: $(LOCK) | $(BIN)/pip
	@echo "Installing into $(VENV), once: 1 to 3 minutes, 2 GB (more with a CUDA build of torch)."
	$(INSTALL) torch
	@touch $@

$(VENV)/.core: pyproject.toml $(VENV)/.torch
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.lab: pyproject.toml $(VENV)/.torch
	$(INSTALL) --editable '.[teach]'
	@touch $(VENV)/.core $@

$(VENV)/.test: pyproject.toml $(VENV)/.torch
	$(INSTALL) --editable '.[test]'
	@touch $(VENV)/.core $@
