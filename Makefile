# `make test` and `make demo` do all of it on a fresh clone: they make .venv, install what constraints.txt pins, and run.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
PIP    := $(PY) -m pip --disable-pip-version-check --no-input
# Two test processes, one thread each: torch's own threads would fight for the same cores.
TEST_WORKERS ?= 2
TESTS  ?= tests

export PIP_CONSTRAINT := constraints.txt
export PIP_ROOT_USER_ACTION := ignore

.DEFAULT_GOAL := help
.PHONY: help install test test-slow lint format demo clean distclean

help: ## what this Makefile does
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

install: $(STAMP) ## make .venv and install the pinned dependencies into it (the others do it when needed)

$(PY):
	@"$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 13) else \
	  f"The pinned dependencies need Python 3.11 or 3.12; this is {v.major}.{v.minor}. Try: make PYTHON=/path/to/python3.11")'
	@echo "== Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)

# torch goes first: a package that asks for "torch" would otherwise choose the build itself.
$(STAMP): constraints.txt pyproject.toml scripts/install_detectron2.sh | $(PY)
	@echo "== Installing into $(VENV) (about 6 GB and some minutes the first time) 1/4: torch"
	@$(PIP) install --quiet setuptools wheel
	@$(PIP) install torch torchvision
	@echo "== 2/4: detectron2"
	@scripts/install_detectron2.sh $(PY)
	@echo "== 3/4: this project and what it needs"
	@SAM2_BUILD_CUDA=0 $(PIP) install --no-build-isolation --editable '.[dev,sam2]'
	@echo "== 4/4: checking"
	@$(PIP) check
	@$(PY) -c 'from samcp import SAMCP'
	@touch $@
	@echo "== Installed"

test: $(STAMP) ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not slow' -n $(TEST_WORKERS) $(TESTS)

test-slow: $(STAMP) ## the slow tests only
	OMP_NUM_THREADS=1 $(PY) -m pytest -m slow $(TESTS)

lint: $(STAMP) ## ruff (lint and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	@echo "lint: clean"

format: $(STAMP) ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

demo: $(STAMP) ## a small model trained and judged in minutes; a page of pictures in output/demo
	$(PY) scripts/run_demo.py --output output/demo

clean: ## remove what tools leave behind (keeps .venv and output)
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache *.egg-info projects/samcp/*.egg-info
	find proposal_cache projects scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)
