# On a machine without uv the first target gets it into .venv by itself.
UV := .venv/bin/uv
PYTHON ?= python3
BIN := .venv/bin

.PHONY: up down superuser image cluster cluster-down test test-chaos test-slow check format bench

$(UV):
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

# The lock file is the truth: a target runs on exactly what it names.
.venv/.synced: uv.lock pyproject.toml $(UV)
	$(UV) sync --frozen --inexact --quiet
	@touch $@

# `make up API_PORT=8001 DATA_DIR=/var/lib/studio`: a variable of the command line reaches the stack.
up: .venv/.synced
	@exec $(BIN)/python -m workers.stack up

down: .venv/.synced
	@$(BIN)/python -m workers.stack down

# `make superuser EMAIL=ada@example.com`: the first one; superusers make others over the API.
superuser: .venv/.synced
	@$(BIN)/python -m workers.superuser "$(EMAIL)"

# The dev-server image; `make up` makes it when it is missing, this also when its inputs have changed.
image: .venv/.synced
	docker/devserver/build

# A cluster for `DEPLOYMENT_MODE=kubernetes make up`, of one node unless KUBECONFIG names one; prints what to export.
cluster: .venv/.synced
	@k8s/cluster up

cluster-down: .venv/.synced
	@k8s/cluster down

check: .venv/.synced
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy .
	$(BIN)/lint-imports --no-cache

format: .venv/.synced
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Tests wait more than they compute: three files at a time on two cores. Then, whatever has failed by then, those that
# take something from all others.
test: .venv/.synced
	@failed=; \
	$(BIN)/pytest -n 3 --dist loadfile -m "not alone" --durations 40 || failed=yes; \
	$(BIN)/pytest -m alone --durations 20 || failed=yes; \
	test -z "$$failed"

# Parts of `make test` on their own: those that kill processes, and those that take longer than ten seconds.
test-chaos: .venv/.synced
	$(BIN)/pytest -m "chaos and not alone" -n 2 --dist loadfile

test-slow: .venv/.synced
	$(BIN)/pytest -m "slow and not alone" -n 3 --dist loadfile

bench: .venv/.synced
	$(BIN)/python -m bench
