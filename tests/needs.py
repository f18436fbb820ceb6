"""What a test needs of the machine, by its marker. Missing: the test is skipped and says so; where STUDIO_REQUIRE
names the need (`docker,browser,litellm,kubernetes,node,compose`), it fails instead, so that nothing is left out in
silence. One that is marked `alone` fails beside others: it would fail them.
"""

import os
import shutil
from collections.abc import Callable
from functools import cache

import pytest
from docker.errors import DockerException

import docker
from tests.cluster import missing_cluster
from tests.compose import missing_compose
from tests.litellm import missing_litellm
from tests.node import missing_node

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@cache
def missing_docker() -> str | None:
    try:
        client = docker.from_env(timeout=5)
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    try:
        client.ping()
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    else:
        return None
    finally:
        client.close()


@cache
def missing_browser() -> str | None:
    return None if any(map(shutil.which, BROWSERS)) else f"none of {', '.join(BROWSERS)} is installed"


NEEDS: dict[str, Callable[[], str | None]] = {
    "docker": missing_docker,
    "browser": missing_browser,
    "litellm": missing_litellm,
    "kubernetes": missing_cluster,
    "node": missing_node,
    "compose": missing_compose,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("alone") and "PYTEST_XDIST_WORKER" in os.environ:
        pytest.fail("it runs alone: `pytest -m alone`, without -n", pytrace=False)
    required = os.environ.get("STUDIO_REQUIRE", "").split(",")
    for need, missing in NEEDS.items():
        reason = missing() if item.get_closest_marker(need) else None
        if reason is not None and need in required:
            pytest.fail(f"STUDIO_REQUIRE names {need}, but {reason}", pytrace=False)
        if reason is not None:
            pytest.skip(reason)
