# Every target makes what it needs, the environment included. `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
DATA ?=
ARGS ?=
VENV_PYTHON = "$(VENV)/bin/python"

.DEFAULT_GOAL := help
.PHONY: help setup demo camvid camvid-unseen test lint

help:
	@echo "make demo               the whole road on drawn scenes: data, five stages, report"
	@echo "make camvid DATA=DIR    the same road on the photographs in DIR"
	@echo "make camvid-unseen DATA=DIR   ... evaluated on a drive that it never saw"
	@echo "make test               the tests"
	@echo "make lint               ruff: lint and format, without changing a file"
	@echo "make setup              only the environment"
	@echo
	@echo "PYTHON=python3.12 picks the Python (3.10 to 3.13), VENV=DIR the environment (.venv),"
	@echo "SEED=N the seed, ARGS='--only STAGE' goes to experiments/run.py (see its --help)."

setup:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "set-up: error: no $(PYTHON) here; install Python 3.10 to 3.13, or name one:" \
	    "make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" tools/setup_env.py --venv "$(VENV)"

demo: setup
	@$(VENV_PYTHON) experiments/run.py configs/quickstart/recipe.yaml --seed $(SEED) $(ARGS)

# The folder is looked at first: nobody waits for a set-up to hear that it is not there.
camvid camvid-unseen:
	@test -n "$(DATA)" || { \
	  echo "$@: error: say where the photographs are: make $@ DATA=<folder>" >&2; exit 1; }
	@test -d "$(DATA)" || { echo "$@: error: DATA=$(DATA) is not a folder" >&2; exit 1; }
	@$(MAKE) --no-print-directory setup
	@$(VENV_PYTHON) experiments/run.py configs/camvid/$(RECIPE_$@) --data "$(DATA)" \
	  --seed $(SEED) $(ARGS)
RECIPE_camvid = recipe.yaml
RECIPE_camvid-unseen = unseen_recipe.yaml

# Two processes of one thread each: tiny models gain nothing from more threads.
test: setup
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -n 2 $(ARGS) \
	  && echo "All tests passed." \
	  || { echo "Some tests failed; their names are above."; exit 1; }

lint: setup
	@$(VENV_PYTHON) -m ruff check && $(VENV_PYTHON) -m ruff format --check
