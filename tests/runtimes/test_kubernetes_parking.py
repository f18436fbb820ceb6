"""The shell text around a server in a pod, run for real: once it is the server, and never again."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import docker
from activities.runtimes.kubernetes_spec import PARKING
from activities.runtimes.spec import LAUNCHER
from tests.runtimes.waiting import until

WAIT_S = 30


class Container:
    """The container's first process as one of this machine's, its folders in a temporary place."""

    def __init__(self, folder: Path) -> None:
        self.marks, self.project = folder / "marks", folder / "app"
        self.marks.mkdir()
        self.project.mkdir()
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, command: str, *, install: str = "", files: str = "256") -> subprocess.Popen[bytes]:
        arguments = [str(self.marks), files, LAUNCHER, "studio", command, install]
        process = subprocess.Popen(
            ["sh", "-c", PARKING, "studio", *arguments],
            cwd=self.project,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(self, command: str, *, install: str = "", files: str = "256") -> tuple[int, bytes, bytes]:
        """Exit code, output and errors of a run to its end."""
        process = self.start(command, install=install, files=files)
        out, err = process.communicate(timeout=WAIT_S)
        return process.returncode, out, err

    def close(self) -> None:
        """End what a test left, as the end of a container does."""
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    made = Container(tmp_path)
    yield made
    made.close()


def children(pid: int) -> list[str]:
    return [child.name() for child in psutil.Process(pid).children(recursive=True)]


def test_the_first_run_is_the_server_and_ends_as_it_does(container: Container) -> None:
    code, out, err = container.run("echo served; echo failed >&2; ulimit -n; exit 3", install="touch ../installed")
    assert (code, err) == (3, b"")
    assert out == b"studio: installing: touch ../installed\nserved\nfailed\n256\n"
    assert (container.project.parent / "installed").exists()


async def test_the_second_run_parks_until_it_is_told_to_end(container: Container) -> None:
    container.run("exit 1")
    parked = container.start("touch ran-again", install="touch installed-again")

    async def sleeps() -> bool:
        return children(parked.pid) == ["tail"]

    await until(sleeps)
    os.kill(parked.pid, signal.SIGTERM)
    assert (*parked.communicate(timeout=WAIT_S), parked.returncode) == (b"", b"", 0)
    assert list(container.project.iterdir()) == []


def test_a_failed_install_parks_too(container: Container) -> None:
    code, out, _ = container.run("touch ../served", install="exit 7")
    assert (code, out.splitlines()[-1]) == (7, b"studio: install failed with exit code 7")
    assert (container.marks / "started").is_dir()
    assert not (container.project.parent / "served").exists()


def test_a_server_that_was_killed_says_by_which_signal(container: Container) -> None:
    assert container.run("kill -KILL $$")[0] == 137


async def test_the_server_is_told_to_end_and_may_take_its_time(container: Container) -> None:
    process = container.start("trap 'sleep 0.3; echo bye; exit 5' TERM; touch up; while :; do sleep 0.05; done")

    async def serves() -> bool:
        return (container.project / "up").exists()

    await until(serves)
    os.kill(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=WAIT_S)
    assert (process.returncode, out) == (5, b"bye\n")


def test_a_bound_above_the_nodes_is_the_nodes(container: Container) -> None:
    code, out, err = container.run("ulimit -n", files="99999999999")
    assert (code, out.strip().isdigit(), err) == (0, True, b"")


def test_without_its_mark_nothing_runs(container: Container) -> None:
    container.marks.rmdir()
    code, out, err = container.run("echo served")
    assert (code, out) == (125, b"")
    assert b"started" in err


def test_arguments_are_not_read_as_shell(container: Container) -> None:
    assert container.run("echo '$(touch a)' \"`echo b`\"") == (0, b"$(touch a) b\n", b"")
    assert list(container.project.iterdir()) == []


@pytest.mark.docker
async def test_as_the_first_process_it_ends_and_reaps(engine: docker.DockerClient, image: str, tmp_path: Path) -> None:
    """What an init is for, on a container without one."""
    orphans = "for i in 1 2 3; do sh -c 'sleep 0.1 &'; done; sleep 1; touch /tmp/done; exec sleep infinity"
    tmp_path.chmod(0o777)
    made = engine.containers.create(
        image,
        ["-c", PARKING, "studio", "/run/studio", "256", LAUNCHER, "studio", orphans, ""],
        entrypoint="sh",
        user="1000:1000",
        init=False,
        read_only=True,
        working_dir="/tmp",
        tmpfs={"/tmp": "mode=1777"},
        volumes={str(tmp_path): {"bind": "/run/studio", "mode": "rw"}},
    )

    def seen() -> list[list[str]]:
        processes: list[list[str]] = made.top(ps_args="-eo pid,stat,args")["Processes"]
        return processes

    async def serves() -> bool:
        return any(process[2] == "sleep infinity" for process in seen())

    async def parks() -> bool:
        return any(process[2] == "tail -f /dev/null" for process in seen())

    try:
        made.start()
        await until(serves)
        states = [state for _, state, _ in seen()]
        assert (len(states), [state for state in states if state.startswith("Z")]) == (2, [])
        made.stop(timeout=WAIT_S)
        assert made.wait(timeout=WAIT_S)["StatusCode"] == 143
        made.start()
        await until(parks)
        made.stop(timeout=WAIT_S)
        assert made.wait(timeout=WAIT_S)["StatusCode"] == 0
    finally:
        made.remove(force=True)
