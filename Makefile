# On a machine without uv the first target gets it into .venv by itself.
UV := .venv/bin/uv
PYTHON ?= python3
BIN := .venv/bin

.PHONY: up down image test check bench format

$(UV):
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

# The lock file is the truth: a target runs on exactly what it names.
.venv/.synced: uv.lock pyproject.toml $(UV)
	$(UV) sync --frozen --inexact --quiet
	@touch $@

up: .venv/.synced
	@exec $(BIN)/python -m workers.stack up

down: .venv/.synced
	@$(BIN)/python -m workers.stack down

# The dev servers' image; made only when its inputs have changed.
image: .venv/.synced
	@docker/devserver/build

check: .venv/.synced
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/lint-imports --no-cache

format: .venv/.synced
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: .venv/.synced
	$(BIN)/pytest

bench: .venv/.synced
	$(BIN)/python -m bench
