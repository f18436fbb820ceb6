"""What is the local driver's own: what its sandbox hides, and what lives and dies with whom."""

import asyncio
import os
import re
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from activities.ports import ContainerState, ExecSpec
from activities.runtimes.guest import collect
from activities.runtimes.local import LocalRuntime
from activities.runtimes.local_state import ServerFolder
from activities.runtimes.open import RuntimeMode
from tests.runtimes.conftest import SERVE, House, no_stage, spec_of
from tests.runtimes.waiting import until
from workflows.contracts.names import ProjectRef

HIDER = "setsid sh -c 'trap : TERM HUP; while :; do date +%N > beat; sleep 0.1; done' & "


@pytest.fixture
def mode() -> RuntimeMode:
    return RuntimeMode.LOCAL


@pytest.fixture(params=["sandbox", "plain"])
async def local(house: House, request: pytest.FixtureRequest) -> LocalRuntime:
    """The driver with bubblewrap and without."""
    runtime = await house.open()
    assert isinstance(runtime, LocalRuntime)
    assert runtime.isolation
    if request.param == "plain":
        runtime._sandboxed = False
    elif not runtime.sandboxed:
        pytest.skip("bubblewrap doesn't work here")
    return runtime


async def silent(file: Path) -> bool:
    before = file.read_bytes()
    await asyncio.sleep(0.4)
    return file.read_bytes() == before


async def run(runtime: LocalRuntime, ref: ProjectRef, command: str) -> str:
    out, errors, _ = await collect(runtime.exec(ref, ExecSpec(command, timeout_s=20)))
    return (out + errors).decode()


async def test_a_servers_tree_ends_with_it_whatever_it_did(house: House, local: LocalRuntime) -> None:
    ref = house.project()
    await local.launch(spec_of(ref, HIDER + SERVE), on_stage=no_stage)
    await until(lambda: local.probe(ref, 8000))
    beat = house.folder(ref) / "beat"
    assert not await silent(beat)
    await local.stop(ref, grace_s=1)
    await until(lambda: silent(beat), within_s=5)
    status = await local.inspect(ref)
    assert status is not None
    assert status.state is ContainerState.EXITED


async def test_a_supervisor_that_is_killed_takes_its_server_along(house: House, local: LocalRuntime) -> None:
    ref = house.project()
    await local.launch(spec_of(ref), on_stage=no_stage)
    await until(lambda: local.probe(ref, 8000))
    folder = local._folder(ref)
    os.kill(int((folder.path / "pid").read_text()), signal.SIGKILL)
    await until(lambda: _ended(folder))
    status = await local.inspect(ref)
    assert status is not None
    assert (status.state, status.exit_code) == (ContainerState.EXITED, 137)
    again = await local.launch(spec_of(ref), on_stage=no_stage)
    assert again.state is ContainerState.RUNNING
    await until(lambda: local.probe(ref, 8000))


async def _ended(folder: ServerFolder) -> bool:
    return not folder.alive()


async def test_commands_and_terminals_work_either_way(house: House, local: LocalRuntime) -> None:
    ref = house.project()
    await local.launch(spec_of(ref), on_stage=no_stage)
    assert await run(local, ref, "echo hi > f; cat f; id -u") == f"hi\n{local._owner[0]}\n"
    await local.start_command(ref, "c", ExecSpec("echo ran"))
    items = [item async for item in local.follow_command(ref, "c")]
    assert items[0] == b"ran\n"
    async with local.terminal(ref, session=None, cols=80, rows=24) as terminal, asyncio.timeout(10):
        await terminal.write(b"echo $((6*7))-here; exit\n")
        got = b""
        while data := await terminal.read():
            got += data
    assert b"42-here" in got


async def test_the_sandbox_hides_the_house(house: House) -> None:
    runtime = await house.open()
    assert isinstance(runtime, LocalRuntime)
    if not runtime.sandboxed:
        pytest.skip("bubblewrap doesn't work here")
    ref, other = house.project(), house.project()
    (house.folder(other) / "secret.txt").write_text("secret")
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    hidden = [
        house.settings.data_dir,
        house.folder(other),
        Path.home(),
        Path("/etc/shadow"),
        Path("/var/run/docker.sock"),
    ]
    shown = await run(
        runtime, ref, f"find {' '.join(map(str, hidden))} -mindepth 0 -not -type d 2>/dev/null | grep -v pyenv"
    )
    assert shown == ""
    processes = (await run(runtime, ref, "cat /proc/[0-9]*/comm")).split()
    assert processes.count("bwrap") == 1
    assert len(processes) < 8, "only the sandbox's own"
    assert re.search(r"Read-only|Permission denied", await run(runtime, ref, "touch /usr/x"))
    assert runtime.isolation.startswith("partial: ")
    assert "single trusted user" in runtime.isolation


async def test_a_server_outlives_a_killed_service_and_is_found_again(house: House, tmp_path: Path) -> None:
    ref = house.project()
    program = textwrap.dedent(f"""
        import asyncio, os, signal
        from pathlib import Path
        from activities.runtimes.open import RuntimeMode, RuntimeSettings, open_runtime
        from tests.runtimes.conftest import no_stage, spec_of
        from workflows.contracts.names import ProjectRef
        async def main():
            settings = RuntimeSettings(RuntimeMode.LOCAL, {house.settings.instance!r},
                Path({str(house.settings.data_dir)!r}), Path({str(house.settings.projects_root)!r}))
            async with open_runtime(settings) as runtime:
                await runtime.launch(spec_of(ProjectRef{tuple(ref)!r}), on_stage=no_stage)
                os.killpg(0, signal.SIGKILL)
        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=Path(__file__).parents[2], start_new_session=True
    )
    assert await process.wait() == -signal.SIGKILL
    runtime = await house.open()
    found = await runtime.discover()
    assert [status.state for status in found] == [ContainerState.RUNNING]
    status = await runtime.launch(spec_of(ref), on_stage=no_stage)
    assert status.id == found[0].id
    await until(lambda: runtime.probe(ref, 8000))


async def test_two_servers_get_two_ports_and_keep_them(house: House) -> None:
    runtime = await house.open()
    refs = [house.project() for _ in range(3)]
    statuses = await asyncio.gather(*(runtime.launch(spec_of(ref), on_stage=no_stage) for ref in refs))
    ports = [status.address[1] for status in statuses if status.address is not None]
    assert len(set(ports)) == 3
    await runtime.stop(refs[0], grace_s=1)
    again = await runtime.launch(spec_of(refs[0]), on_stage=no_stage)
    assert again.address == statuses[0].address


async def test_memory_that_ran_out_is_told_where_the_kernel_counts_it(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref, 'exec python3 -c "bytearray(700 * 2**20)"'), on_stage=no_stage)
    async with asyncio.timeout(20):
        status = await runtime.wait(ref)
    assert status is not None
    if os.geteuid() == 0:
        assert (status.exit_code, status.out_of_memory) == (137, True)
