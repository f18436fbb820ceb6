"""One real stack for each runtime, and a browser. Every test here runs once on each.

`local` is given an engine's address where somebody listens and nobody must ever call: a machine without Docker.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext

import docker
from tests.e2e.browser import chromium, window
from tests.e2e.studio import Person, Project, Studio
from tests.namespaces import own_namespace
from tests.workers.stacks import running_stack, stack_environment
from workers.stack.data_directory import DataDirectory
from workflows.contracts.names import LABEL_INSTANCE

MODES = [
    pytest.param("docker", marks=pytest.mark.docker),
    "local",
    pytest.param("kubernetes", marks=pytest.mark.kubernetes),
]
READY_S = 240.0
"""Local mode installs the templates' packages into its new data folder first."""

ECHO = """
from fastapi import Request

@app.get("/echo")
def echo(request: Request) -> dict[str, str]:
    return dict(request.headers)
"""


def remove_containers(instance: str) -> None:
    """A stack that ends keeps its containers for the next one on its folder: there will be none."""
    ours: dict[str, str | list[str] | bool] = {"label": f"{LABEL_INSTANCE}={instance}"}
    with closing(docker.from_env()) as engine:
        for container in engine.containers.list(all=True, filters=ours):
            container.remove(force=True)
        for network in engine.networks.list(filters=ours):
            network.remove()


class NoEngine:
    """Somebody listens where an engine would, and counts who calls."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix://{path}"
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._socket.settimeout(0)

    def callers(self) -> int:
        """How many have called so far; for the end, since it forgets them."""
        count = 0
        while True:
            try:
                caller, _ = self._socket.accept()
            except BlockingIOError:
                return count
            caller.close()
            count += 1

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="package", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="package")
def no_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoEngine]:
    with closing(NoEngine(tmp_path_factory.mktemp("engine") / "docker.sock")) as engine:
        yield engine


@pytest.fixture(scope="package")
def studio(mode: str, no_engine: NoEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    data = tmp_path_factory.mktemp(f"e2e-{mode}") / "data"
    environment = stack_environment(data) | {"DEPLOYMENT_MODE": mode}
    with ExitStack() as around:
        if mode == "local":
            environment["DOCKER_HOST"] = no_engine.address
        if mode == "kubernetes":
            environment |= around.enter_context(own_namespace(data))
        shots = tmp_path_factory.mktemp(f"shots-{mode}")
        yield around.enter_context(studio_on(environment, mode, shots))
    if mode == "local":
        assert no_engine.callers() == 0, "local mode has called the Docker engine"


@contextmanager
def studio_on(environment: dict[str, str], mode: str, shots: Path) -> Iterator[Studio]:
    """A stack of these settings, ended as its user would end it, and without containers left."""
    try:
        with running_stack(environment, READY_S) as stack, closing(Studio(stack, mode, shots)) as studio:
            yield studio
    finally:
        if mode == "docker":
            remove_containers(DataDirectory(Path(environment["DATA_DIR"])).instance)


@pytest.fixture(autouse=True)
def measured(studio: Studio, record_property: Callable[[str, object], None]) -> Iterator[None]:
    """What a test tells of its times comes with its report."""
    studio.measured.clear()
    yield
    for line in studio.measured:
        record_property("measured", line)


@pytest.fixture
def ann(studio: Studio) -> Iterator[Person]:
    """The owner in these stories; what she makes goes with the test."""
    yield studio.person("ann")
    studio.person("ann").tidy_up()


@pytest.fixture
def ben(studio: Studio) -> Iterator[Person]:
    """Somebody else, likewise."""
    yield studio.person("ben")
    studio.person("ben").tidy_up()


@pytest.fixture(scope="package")
def site(studio: Studio) -> Project:
    """A static project of Ann's that runs, and is left running."""
    return studio.person("ann").start("static", keep=True)


@pytest.fixture(scope="package")
def service(studio: Studio) -> Project:
    """A FastAPI project of Ann's that runs, is left running, and says at `/echo` what reached it."""
    project = studio.person("ann").make("fastapi", keep=True)
    project.put("main.py", project.call("GET", "/files/main.py").text + ECHO)
    project.start()
    project.visit("/echo")
    return project


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Of a module whose tests are all synchronous: its driver keeps an event loop of its own running here."""
    with chromium() as running:
        yield running


@pytest.fixture
def tabs(browser: Browser) -> Iterator[BrowserContext]:
    """A browser window without cookies."""
    with window(browser) as context:
        yield context
