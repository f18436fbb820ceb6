"""`run_command`, `read_output` and `kill_command` on a real runtime."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from temporalio.activity import ActivityCancellationDetails
from temporalio.testing import ActivityEnvironment

from activities.errors import RuntimeUnavailableError, SpecInvalidError
from activities.files.store import DiskFileStore
from activities.ports import CommandStatus, Runtime
from activities.runtimes.open import RuntimeMode
from activities.tools.command_output import HEAD, TAIL, OutputEnds
from activities.tools.tool import DevServerView, ToolFailure
from tests.runtimes.conftest import (  # noqa: F401 -- pytest finds its fixtures here
    House,
    engine,
    house,
    image,
    no_stage,
    spec_of,
)
from tests.runtimes.waiting import until
from tests.tools.world import DyingError, NoDevServer, Teller, World, world
from workflows.contracts.names import ProjectRef

STAY = "exec sleep 600"


@pytest.fixture
def mode() -> RuntimeMode:
    return RuntimeMode.LOCAL


@pytest.fixture
async def runtime(house: House) -> Runtime:  # noqa: F811 -- the fixture of that name
    return await house.open()


@pytest.fixture
async def task(house: House, runtime: Runtime) -> World:  # noqa: F811 -- the fixture of that name
    ref = house.project()
    await runtime.launch(spec_of(ref, STAY), on_stage=no_stage)
    return world(DiskFileStore(house.settings.projects_root, None), ref, runtime)


def told(task: World) -> bytes:
    assert isinstance(task.context.output, Teller)
    return task.context.output.data


def attempt(task: World, **parts: object) -> World:
    """Another attempt, which has only what outlives the first."""
    return World(replace(task.context, **parts), task.root, task.notes)  # type: ignore[arg-type]  # a test names what it changes


async def status_of(task: World, call: str = "c1") -> CommandStatus:
    status = await task.context.runtime.command_status(task.context.ref, call)
    assert status is not None
    return status


def written(task: World, name: str) -> Callable[[], object]:
    async def there() -> bool:
        return (task.root / name).exists()

    return there


# --- run_command ---


@pytest.mark.parametrize(
    "mode", [RuntimeMode.LOCAL, pytest.param(RuntimeMode.DOCKER, marks=pytest.mark.docker)], ids=["local", "docker"]
)
async def test_a_command_answers_with_its_exit_code_and_output(task: World) -> None:
    result = await task.run("run_command", command="echo out; pwd; echo err >&2; exit 3", cwd=".")
    first, *lines = result.text.split("\n")
    assert first == "exit code 3"
    assert [lines[0], lines[-2]] == ["out", "err"]
    assert (result.exit_code, result.failed) == (3, False)
    assert told(task).decode() == "\n".join(lines)
    quiet = await attempt(task, output=Teller()).run("run_command", as_call="c2", command="true")
    assert quiet.text == "exit code 0\n(no output)"
    again = await attempt(task, output=Teller()).run("run_command", command="echo out; pwd; echo err >&2; exit 3")
    assert again == result


class DyingTeller(Teller):
    """A teller whose worker dies after the first piece."""

    async def tell(self, data: bytes, *, end: int) -> None:
        await super().tell(data, end=end)
        raise DyingError


async def test_a_retried_command_runs_once_and_is_told_once(task: World) -> None:
    command = "echo ran >> count.txt; echo begun; while [ ! -e go ]; do sleep 0.05; done; echo ended"
    dying = DyingTeller()
    with pytest.raises(DyingError):
        await attempt(task, output=dying).run("run_command", command=command)
    assert dying.data == b"begun\n"
    (task.root / "go").touch()
    result = await attempt(task, output=(later := Teller(dying.data))).run("run_command", command=command)
    assert result.text == "exit code 0\nbegun\nended\n"
    assert later.data == b"begun\nended\n"
    at_once = await asyncio.gather(
        *(attempt(task, output=Teller()).run("run_command", command=command) for _ in range(2))
    )
    assert list(at_once) == [result, result]
    assert (task.root / "count.txt").read_text() == "ran\n"


HIDER = "setsid sh -c 'trap : TERM HUP; echo up > up; while :; do date +%N > beat; sleep 0.1; done' & sleep 300"


async def test_a_cancelled_commands_tree_is_gone(task: World) -> None:
    running = asyncio.create_task(task.run("run_command", command=HIDER))
    await until(written(task, "up"))  # type: ignore[arg-type]  # an awaitable bool
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (await status_of(task)).exit_code not in (None, 0)
    beat = (task.root / "beat").read_bytes()
    await asyncio.sleep(0.5)
    assert (task.root / "beat").read_bytes() == beat


@pytest.mark.parametrize(
    "details", [{"worker_shutdown": True}, {"timed_out": True}, {"cancel_requested": True}], ids=str
)
async def test_a_worker_that_goes_leaves_the_command_to_the_next(task: World, details: dict[str, bool]) -> None:
    environment = ActivityEnvironment()
    command = "echo up > up; while [ ! -e go ]; do sleep 0.05; done; echo ended"

    async def activity() -> None:
        await task.run("run_command", command=command)

    running = asyncio.create_task(environment.run(activity))
    await until(written(task, "up"))  # type: ignore[arg-type]  # as above
    environment.cancel(cancellation_details=ActivityCancellationDetails(**details))
    with pytest.raises(asyncio.CancelledError):
        await running
    (task.root / "go").touch()
    result = await attempt(task, output=Teller()).run("run_command", command=command)
    assert ("ended" in result.text) is ("cancel_requested" not in details)


async def test_time_has_an_end(task: World) -> None:
    result = await task.run("run_command", command="echo begun; sleep 300", timeout_s=1)
    assert result.text == "exit code 124: its time ran out, it was killed\nbegun\n"
    assert (result.exit_code, result.failed) == (124, True)


async def test_the_middle_of_a_long_output_is_cut_and_can_be_read(task: World) -> None:
    await task.run("run_command", command="seq 10000")
    result = await task.run("run_command", command="seq 10000")
    whole = "".join(f"{n}\n" for n in range(1, 10001))
    assert len(result.text) < HEAD + TAIL + 200
    head, note, tail = result.text.removeprefix("exit code 0\n").partition("\n[… bytes 4,000 to 36,894 cut: ")
    assert whole.startswith(head)
    assert note
    assert whole.endswith(tail.partition("]\n")[2])
    assert tail.startswith("read_output(call='c1', offset=4000)]\n")
    rest = ""
    while len(head + rest) < 36_894:
        part = await task.run("read_output", call="c1", offset=len(head + rest), limit=15_000)
        rest += part.text.partition("\n")[2]
    assert whole.startswith(head + rest)
    assert told(task).decode() == whole


async def test_output_that_is_no_text_does_no_harm(task: World) -> None:
    result = await task.run("run_command", command=r"printf 'a\0b\377c'")
    assert result.text == "exit code 0\na\ufffdb\ufffdc"
    assert told(task) == b"a\0b\xffc"


async def test_where_it_is_run(task: World) -> None:
    (task.root / "src").mkdir(mode=0o777)
    assert (await task.run("run_command", command="basename $PWD", cwd="src")).text == "exit code 0\nsrc\n"
    missing = await task.run("run_command", as_call="c2", command="true", cwd="missing")
    assert missing.exit_code == 126
    assert "no such folder" in missing.text
    for bad in ("/etc", "../x"):
        with pytest.raises(SpecInvalidError):
            await task.run("run_command", as_call="c3", command="true", cwd=bad)
    for bad in ("", "a\0b", "x" * 30_001):
        with pytest.raises(ToolFailure, match="arguments of run_command"):
            await task.run("run_command", as_call="c3", command=bad)
    with pytest.raises(ToolFailure, match="timeout_s"):
        await task.run("run_command", as_call="c3", command="true", timeout_s=1801)


# --- In the background ---


async def test_a_background_command_is_read_and_killed(task: World) -> None:
    command = "echo first; while [ ! -e go ]; do sleep 0.05; done; echo second; sleep 300"
    result = await task.run("run_command", command=command, background=True, timeout_s=600)
    assert result.text == (
        "Running in the background as 'c1', for at most 600 s: read_output shows its output, kill_command ends it.\n"
        "first\n"
    )
    assert result.exit_code is None
    assert told(task) == b"first\n"
    read = await task.run("read_output", call="c1")
    assert read.text == "[still running; bytes 0 to 6 of 6]\nfirst\n"
    (task.root / "go").touch()

    async def second() -> bool:
        return "second" in (await task.run("read_output", call="c1", offset=-7)).text

    await until(second)
    waited = asyncio.create_task(task.run("read_output", call="c1", wait_s=30, offset=3, limit=4))
    killed = await task.run("kill_command", call="c1")
    assert killed.text.startswith("It was ended (exit code ")
    assert (await waited).text.partition("; ")[2] == "bytes 3 to 7 of 13]\nst\ns"
    assert (await waited).exit_code == killed.exit_code
    again = await task.run("kill_command", call="c1")
    assert again.text.startswith("It had ended already: exit code ")
    assert (
        await attempt(task, output=Teller()).run("run_command", command=command, background=True)
    ).exit_code not in (0, None)


async def test_a_short_background_command_has_ended(task: World) -> None:
    result = await task.run("run_command", command="echo done", background=True)
    assert (result.text, result.exit_code) == ("exit code 0\ndone\n", 0)


async def test_ranges_beyond_the_output(task: World) -> None:
    await task.run("run_command", command="printf 0123456789")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({}, "bytes 0 to 10 of 10]\n0123456789"),
        ({"limit": 3}, "bytes 7 to 10 of 10]\n789"),
        ({"offset": -4, "limit": 2}, "bytes 6 to 8 of 10]\n67"),
        ({"offset": -400}, "bytes 0 to 10 of 10]\n0123456789"),
        ({"offset": 10}, "bytes 10 to 10 of 10]\n"),
        ({"offset": 11}, "bytes 10 to 10 of 10]\n"),
    )
    for options, shown in cases:
        assert (await task.run("read_output", call="c1", **options)).text == f"[exit code 0; {shown}"


async def test_only_this_tasks_commands_are_known(task: World) -> None:
    await task.run("run_command", command="true")
    task.notes.calls = {"never"}
    for name in ("read_output", "kill_command"):
        with pytest.raises(ToolFailure, match="no run_command call with the id 'c1'"):
            await task.run(name, call="c1")
        with pytest.raises(ToolFailure, match="Nothing is known of 'never'"):
            await task.run(name, call="never")
    with pytest.raises(ToolFailure, match="arguments of read_output"):
        await task.run("read_output", call="c1", wait_s=31)
    with pytest.raises(ToolFailure, match="call: String should match"):
        await task.run("kill_command", call="../c1")


# --- A container that doesn't run ---


@dataclass
class LaunchingDevServer(NoDevServer):
    """A `DevServerControl` that launches the container itself."""

    runtime: Runtime
    ref: ProjectRef

    async def start(self) -> DevServerView:
        await self.runtime.launch(spec_of(self.ref, STAY), on_stage=no_stage)
        return DevServerView("running", None, None, None)


class FailingDevServer(NoDevServer):
    """A `DevServerControl` whose server crashes at each start."""

    async def start(self) -> DevServerView:
        return DevServerView("failed", "crashed", 2, "line\n" * 5000 + "SyntaxError: here")


async def test_a_command_wakes_its_container(task: World, runtime: Runtime) -> None:
    await runtime.remove(task.context.ref)
    task = attempt(task, dev_server=LaunchingDevServer(runtime, task.context.ref))
    assert (await task.run("run_command", command="echo awake")).text == "exit code 0\nawake\n"
    await runtime.stop(task.context.ref)
    assert (await task.run("run_command", as_call="c2", command="echo awake")).exit_code == 0


async def test_a_command_without_a_container_says_why(task: World, runtime: Runtime) -> None:
    await task.run("run_command", command="true")
    await runtime.stop(task.context.ref)
    task = attempt(task, dev_server=FailingDevServer())
    with pytest.raises(ToolFailure, match=r"(?s)crashed, exit code 2.*SyntaxError: here.*try again") as caught:
        await task.run("run_command", as_call="c2", command="true")
    assert len(str(caught.value)) < 5_000
    for name in ("read_output", "kill_command"):
        with pytest.raises(ToolFailure, match="isn't running"):
            await task.run(name, call="c1")


async def test_a_command_that_lost_its_container_says_so(task: World, runtime: Runtime) -> None:
    running = asyncio.create_task(task.run("run_command", command="echo up > up; sleep 300"))
    await until(written(task, "up"))  # type: ignore[arg-type]  # as above
    await runtime.stop(task.context.ref)
    with pytest.raises(Exception):  # noqa: B017, PT011 -- whatever the driver calls it
        await running
    later = attempt(task, dev_server=LaunchingDevServer(runtime, task.context.ref), output=Teller())
    result = await later.run("run_command", command="echo up > up; sleep 300")
    assert (result.exit_code, result.failed) == (137, True)
    assert "its container was stopped" in result.text


class SilentRuntime:
    """A `Runtime` whose commands never say that they have ended."""

    async def start_command(self, ref: ProjectRef, command_id: str, spec: object) -> CommandStatus:
        return CommandStatus(command_id, None, 0)

    async def follow_command(self, ref: ProjectRef, command_id: str) -> AsyncIterator[bytes]:
        yield b"begun\n"
        await asyncio.Event().wait()


async def test_a_runtime_that_never_answers_is_not_waited_for(task: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.tools.run_command._LATE_S", -0.5)
    with pytest.raises(RuntimeUnavailableError):
        await attempt(task, runtime=SilentRuntime()).run("run_command", command="true", timeout_s=1)
    result = await attempt(task, runtime=SilentRuntime(), output=Teller()).run(
        "run_command", command="true", background=True
    )
    assert result.text.endswith("\nbegun\n")


def test_the_ends_of_an_output_are_kept_and_no_more() -> None:
    for size in (0, 10, HEAD, HEAD + TAIL, HEAD + TAIL + 1, 10 * (HEAD + TAIL)):
        for step in (7, 4000, 65536):
            data = (b"0123456789" * (size // 10 + 1))[:size]
            ends = OutputEnds()
            for start in range(0, size, step):
                ends.add(data[start : start + step])
            assert ends.size == size
            text = ends.text("c1").encode()
            if size <= HEAD + TAIL:
                assert text == data
            else:
                assert text.startswith(data[:HEAD])
                assert text.endswith(data[-TAIL:])
                assert len(text) < HEAD + TAIL + 100
