# Every target makes everything it needs, including the environment. Plain `make` lists the targets.
PYTHON ?= python3
VENV ?= .venv
SEED ?= 0
DATA ?=
ARGS ?=
VENV_PYTHON = "$(VENV)/bin/python"

.DEFAULT_GOAL := help
.PHONY: help setup demo camvid camvid-unseen small test lint

help:
	@echo "make demo               everything on drawn scenes: data, five stages, report"
	@echo "make camvid DATA=DIR    the same on the photographs in DIR"
	@echo "make camvid-unseen DATA=DIR   the same, evaluated on a drive never seen in training"
	@echo "make small DATA=DIR     the paper's stages on Cityscapes at 512x256, an hour and a half of two cores"
	@echo "make test               the tests"
	@echo "make lint               ruff: check lint and format without changing files"
	@echo "make setup              only the environment"
	@echo
	@echo "PYTHON=python3.12 chooses the Python (3.10 to 3.13), VENV=DIR the environment (.venv),"
	@echo "SEED=N the seed; ARGS='--only STAGE' is passed to experiments/run.py (see its --help)."

setup:
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { \
	  echo "set-up: error: $(PYTHON) not found; install Python 3.10 to 3.13, or name one:" \
	    "make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" tools/setup_env.py --venv "$(VENV)"

demo: setup
	@$(VENV_PYTHON) experiments/run.py configs/quickstart/recipe.yaml --seed $(SEED) $(ARGS)

# The folder is checked first, so that nobody waits for the set-up only to learn that it is missing.
camvid camvid-unseen small:
	@test -n "$(DATA)" || { \
	  echo "$@: error: say where the photographs are: make $@ DATA=<folder>" >&2; exit 1; }
	@test -d "$(DATA)" || { echo "$@: error: DATA=$(DATA) is not a folder" >&2; exit 1; }
	@$(MAKE) --no-print-directory setup
	@$(VENV_PYTHON) experiments/run.py configs/$(RECIPE_$@) --data "$(DATA)" \
	  --seed $(SEED) $(ARGS)
RECIPE_camvid = camvid/recipe.yaml
RECIPE_camvid-unseen = camvid/unseen_recipe.yaml
RECIPE_small = small/recipe.yaml

# Two processes with one thread each, because tiny models gain nothing from more threads.
test: setup
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -q -n 2 $(ARGS) \
	  && echo "All tests passed." \
	  || { echo "Some tests failed; their names are above."; exit 1; }

lint: setup
	@$(VENV_PYTHON) -m ruff check && $(VENV_PYTHON) -m ruff format --check
