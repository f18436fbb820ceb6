"""What every driver promises (`activities.ports.Runtime`), on each of them."""

import asyncio
import json
import pickle
import re
import sys
import textwrap
from contextlib import aclosing
from pathlib import Path

import pytest

from activities.errors import ContainerMissingError, NotRunningError, ResourcesExhaustedError, SpecInvalidError
from activities.ports import (
    CommandStatus,
    ContainerState,
    ContainerStatus,
    ExecExit,
    ExecOutput,
    ExecSpec,
    Runtime,
)
from activities.runtimes.guest import OUTPUT_LIMIT, collect
from activities.runtimes.open import RuntimeMode
from tests.runtimes.conftest import SERVE, House, no_stage, spec_of
from tests.runtimes.waiting import until
from workflows.contracts.names import ProjectRef

STUBBORN = (
    'python3 -c "import signal, time, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.setsid(); '
    "open('{name}', 'w').write('up'); time.sleep(300)\" & "
    "setsid sh -c \"trap '' TERM; while :; do sleep 1; done\" & "
    "sleep 300"
)


async def running(house: House, command: str = SERVE, **changes: object) -> tuple[Runtime, ProjectRef]:
    runtime = await house.open()
    ref = house.project()
    await runtime.launch(spec_of(ref, command, **changes), on_stage=no_stage)
    return runtime, ref


async def run(runtime: Runtime, ref: ProjectRef, command: str, **options: object) -> tuple[str, str, int]:
    spec = ExecSpec(command, **{"timeout_s": 30.0, **options})  # type: ignore[arg-type]  # a test names what it changes
    out, errors, end = await collect(runtime.exec(ref, spec))
    return out.decode(), errors.decode(), end.exit_code


async def lines_of(runtime: Runtime, ref: ProjectRef, *, tail: int = 200) -> str:
    return b"".join([piece async for piece in runtime.logs(ref, tail=tail)]).decode()


async def alive(runtime: Runtime, ref: ProjectRef, needle: str) -> bool:
    """Whether a process with that in its command line lives beside the server."""
    script = (
        "import os,sys\n"
        "for p in os.listdir('/proc'):\n"
        "  if p.isdigit() and int(p) != os.getpid():\n"
        "    try: line = open(f'/proc/{p}/cmdline','rb').read()\n"
        "    except OSError: continue\n"
        f"    if {needle!r}.encode() in line and b'-I' not in line and b'import os,sys' not in line: print(p, line)\n"
    )
    out, _, _ = await run(runtime, ref, 'python3 -c "$SCRIPT"', environment={"SCRIPT": script})
    return bool(out.strip())


# --- launch ---


async def test_a_launched_server_answers_and_says_its_stages(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    stages: list[str] = []

    async def note(stage: str) -> None:
        stages.append(stage)

    status = await runtime.launch(spec_of(ref), on_stage=note)
    assert status.state is ContainerState.RUNNING
    assert status.address is not None
    assert status.started_at is not None
    assert stages == ["creating", "starting"]
    await until(lambda: runtime.probe(ref, 8000))


async def test_a_right_container_is_adopted_also_by_a_restarted_service(house: House) -> None:
    runtime, ref = await running(house)
    first = await runtime.inspect(ref)
    assert first is not None
    later = await house.open()
    again = await later.launch(spec_of(ref), on_stage=no_stage)
    assert (again.id, again.started_at) == (first.id, first.started_at)
    assert [status.id for status in await later.discover()] == [first.id]


async def test_a_stopped_one_is_started_and_keeps_its_files(house: House) -> None:
    runtime, ref = await running(house)
    assert (await run(runtime, ref, "echo kept > kept.txt"))[2] == 0
    await runtime.stop(ref)
    await runtime.stop(ref)
    stopped = await runtime.inspect(ref)
    assert stopped is not None
    assert stopped.state is ContainerState.EXITED
    assert stopped.address is None
    assert not await runtime.probe(ref, 8000)
    status = await runtime.launch(spec_of(ref), on_stage=no_stage)
    assert (status.id, status.state) == (stopped.id, ContainerState.RUNNING)
    await until(lambda: runtime.probe(ref, 8000))
    assert (await run(runtime, ref, "cat kept.txt"))[0] == "kept\n"


async def test_another_spec_makes_it_anew(house: House) -> None:
    runtime, ref = await running(house)
    before = await runtime.inspect(ref)
    after = await runtime.launch(spec_of(ref, environment={"COLOUR": "blue"}), on_stage=no_stage)
    assert before is not None
    assert after.id != before.id
    assert after.spec_hash != before.spec_hash
    assert len(await runtime.discover()) == 1
    assert (await run(runtime, ref, "echo $COLOUR $PORT"))[0].startswith("blue ")


async def test_launches_at_once_make_one_container(house: House) -> None:
    ref = house.project()
    runtimes = [await house.open() for _ in range(3)]
    results = await asyncio.gather(
        *(runtime.launch(spec_of(ref), on_stage=no_stage) for runtime in runtimes for _ in range(2)),
        return_exceptions=True,
    )
    made = {result.id for result in results if not isinstance(result, BaseException)}
    failed = [result for result in results if isinstance(result, BaseException)]
    assert len(made) == 1
    assert all(getattr(error, "retryable", False) for error in failed), failed
    assert len(await runtimes[0].discover()) == 1
    await until(lambda: runtimes[0].probe(ref, 8000))


async def test_remove_is_complete_and_idempotent(house: House) -> None:
    runtime, ref = await running(house)
    await runtime.remove(ref)
    await runtime.remove(ref)
    assert await runtime.inspect(ref) is None
    assert await runtime.discover() == []
    assert await runtime.wait(ref) is None
    await runtime.stop(ref)
    await runtime.remove_user(ref.user_id)
    await runtime.remove_user(ref.user_id)
    with pytest.raises(ContainerMissingError):
        await run(runtime, ref, "true")


async def test_a_project_without_its_folder_is_refused_and_leaves_nothing(house: House) -> None:
    runtime = await house.open()
    ref = ProjectRef(7, 999_999_999)
    house.made.append(ref)
    with pytest.raises(SpecInvalidError, match="folder"):
        await runtime.launch(spec_of(ref), on_stage=no_stage)
    assert await runtime.discover() == []


async def test_install_runs_only_when_its_inputs_change(house: House) -> None:
    runtime = await house.open()
    ref = house.project()
    folder = house.folder(ref)
    (folder / "lock").write_text("1")
    spec = spec_of(ref, install="echo installing >> ran.txt", install_inputs=("lock",))

    async def start() -> int:
        await runtime.stop(ref)
        await runtime.launch(spec, on_stage=no_stage)
        await until(lambda: runtime.probe(ref, 8000))
        return (folder / "ran.txt").read_text().count("installing")

    assert await start() == 1
    assert await start() == 1
    (folder / "lock").write_text("2")
    assert await start() == 2


# --- ends ---


async def test_a_crash_tells_exit_code_and_last_lines(house: House) -> None:
    runtime, ref = await running(house, "echo out; echo trouble >&2; sleep 0.3; exit 3")
    status = await _bounded(runtime, ref)
    assert status is not None
    assert (status.state, status.exit_code, status.out_of_memory) == (ContainerState.EXITED, 3, False)
    assert {"out", "trouble"} <= set((await lines_of(runtime, ref)).splitlines())
    with pytest.raises(NotRunningError):
        await run(runtime, ref, "true")


async def _bounded(runtime: Runtime, ref: ProjectRef) -> ContainerStatus | None:
    async with asyncio.timeout(20):
        return await runtime.wait(ref)


async def test_memory_has_an_end(house: House) -> None:
    eat = "python3 -c \"import time; time.sleep(0.3); x = bytearray(700 * 1024 * 1024); print('ate', len(x))\""
    runtime, ref = await running(house, eat)
    status = await _bounded(runtime, ref)
    assert status is not None
    assert status.exit_code not in (0, None)
    assert "ate" not in await lines_of(runtime, ref)


async def test_wait_returns_when_it_is_stopped_from_elsewhere(house: House) -> None:
    runtime, ref = await running(house)
    waiting = asyncio.create_task(_bounded(runtime, ref))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await (await house.open()).stop(ref, grace_s=1)
    status = await waiting
    assert status is None or status.state is ContainerState.EXITED


# --- logs ---


async def test_logs_follow_until_the_end(house: House) -> None:
    runtime, ref = await running(house, "for n in 1 2 3 4 5; do echo line $n; sleep 0.2; done")
    seen = b""
    async with asyncio.timeout(20):
        async for piece in runtime.logs(ref, follow=True):
            seen += piece
    assert [f"line {n}" for n in range(1, 6)] == seen.decode().splitlines()
    assert (await lines_of(runtime, ref, tail=2)).splitlines() == ["line 4", "line 5"]


# --- exec ---


async def test_exec_keeps_streams_and_exit_code_apart(house: House) -> None:
    runtime, ref = await running(house)
    assert await run(runtime, ref, "echo out; echo err >&2; exit 7") == ("out\n", "err\n", 7)
    assert await run(runtime, ref, "pwd; echo $A", cwd=".", environment={"A": "b c"}) == (
        f"{await _home_of(runtime, ref)}\nb c\n",
        "",
        0,
    )
    assert (await run(runtime, ref, "mkdir -p deep/er && cd deep && pwd"))[2] == 0
    assert (await run(runtime, ref, "pwd", cwd="deep/er"))[0].endswith("/deep/er\n")
    assert (await run(runtime, ref, "true", cwd="nowhere"))[2] == 126
    assert (await run(runtime, ref, "cat"))[2] == 0
    for cwd in ("../other", "/etc", "a/../../b"):
        with pytest.raises(SpecInvalidError):
            await run(runtime, ref, "pwd", cwd=cwd)


async def _home_of(runtime: Runtime, ref: ProjectRef) -> str:
    return (await run(runtime, ref, "pwd"))[0].strip()


async def test_exec_gives_bytes_as_they_are_and_much_of_them(house: House) -> None:
    runtime, ref = await running(house)
    script = "import os,sys; d=bytes(range(256))*4096; [sys.stdout.buffer.write(d) for _ in range(24)]"
    out, _, end = await collect(runtime.exec(ref, ExecSpec(f'python3 -c "{script}"')))
    assert len(out) == 24 * 1024 * 1024
    assert out[:256] == bytes(range(256))
    assert end == ExecExit(0)


async def test_exec_runs_out_of_time(house: House) -> None:
    runtime, ref = await running(house)
    async with asyncio.timeout(6):
        out, _, end = await collect(runtime.exec(ref, ExecSpec("echo begun; sleep 60", timeout_s=0.7)))
    assert (out, end) == (b"begun\n", ExecExit(124, timed_out=True))
    assert (await run(runtime, ref, "exit 124"))[2] == 124


@pytest.mark.parametrize("way", ["cancel", "close", "time", "end"])
async def test_nothing_of_an_ended_exec_lives_on(house: House, way: str) -> None:
    runtime, ref = await running(house)
    marker = house.folder(ref) / "up"
    command = STUBBORN.format(name="up")
    if way == "end":
        command = command.removesuffix("sleep 300") + "while [ ! -s up ]; do sleep 0.05; done"
    stream = runtime.exec(ref, ExecSpec(command, timeout_s=1.5 if way == "time" else 60))

    async def consume() -> None:
        async with aclosing(stream):  # type: ignore[type-var]  # the port promises an iterator; all are generators
            async for _ in stream:
                pass

    task = asyncio.create_task(consume())

    async def up() -> bool:
        return marker.exists()

    await until(up)
    if way in {"cancel", "close"}:
        assert await alive(runtime, ref, "sleep")
        task.cancel()
    await asyncio.wait([task], timeout=6)
    assert task.done()
    assert not await alive(runtime, ref, "sleep")
    await until(lambda: runtime.probe(ref, 8000))


async def test_eight_execs_at_once(house: House) -> None:
    """Each waits for all others."""
    runtime, ref = await running(house)
    meet = "touch met-{0}; while [ $(ls met-* | wc -l) -lt 8 ]; do sleep 0.1; done; echo {0}"
    results = await asyncio.gather(*(run(runtime, ref, meet.format(n)) for n in range(8)))
    assert [result[0] for result in results] == [f"{n}\n" for n in range(8)]


async def test_a_slow_reader_holds_the_writer_back(house: House) -> None:
    runtime, ref = await running(house)
    got = 0
    async with aclosing(runtime.exec(ref, ExecSpec("yes | tee -a /dev/null", timeout_s=30))) as stream:  # type: ignore[type-var]
        async for item in stream:
            assert isinstance(item, ExecOutput)
            got += len(item.data)
            await asyncio.sleep(0.01)
            if got > 300_000:
                break
    assert not await alive(runtime, ref, "yes")


SILENT_S = {RuntimeMode.DOCKER: 8.0, RuntimeMode.LOCAL: 8.0, RuntimeMode.KUBERNETES: 30.0}
"""Within which a killed service's commands have ended; in a cluster its node has to hear of it first."""


async def test_a_service_that_is_killed_takes_its_execs_along(house: House, mode: RuntimeMode) -> None:
    _, ref = await running(house)
    program = textwrap.dedent(f"""
        import asyncio, pickle
        from activities.ports import ExecSpec
        from activities.runtimes.open import open_runtime
        from workflows.contracts.names import ProjectRef
        async def main():
            settings = pickle.loads({pickle.dumps(house.settings)!r})
            async with open_runtime(settings) as runtime:
                command = "setsid sh -c 'trap : TERM; while :; do date +%N > beat; sleep 0.1; done'"
                async for _ in runtime.exec(ProjectRef{tuple(ref)!r}, ExecSpec(command)): pass
        asyncio.run(main())
    """)
    beat = house.folder(ref) / "beat"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=Path(__file__).parents[2])
    try:

        async def begun() -> bool:
            return beat.exists()

        await until(begun)
    finally:
        process.kill()
        await process.wait()

    async def silent() -> bool:
        before = beat.read_bytes()
        await asyncio.sleep(0.4)
        return beat.read_bytes() == before

    await until(silent, within_s=SILENT_S[mode])


# --- ledger ---


async def ended(runtime: Runtime, ref: ProjectRef, command_id: str) -> CommandStatus:
    found: list[CommandStatus] = []

    async def over() -> bool:
        status = await runtime.command_status(ref, command_id)
        assert status is not None
        found.append(status)
        return status.exit_code is not None

    await until(over)
    return found[-1]


async def test_a_ledger_command_runs_once_whoever_asks(house: House) -> None:
    runtime, ref = await running(house)
    other = await house.open()
    spec = ExecSpec("echo ran >> count.txt; echo out; echo err >&2; sleep 0.5; exit 5")
    assert await runtime.command_status(ref, "c-1") is None
    statuses = await asyncio.gather(*(one.start_command(ref, "c-1", spec) for one in (runtime, other) * 3))
    assert {status.id for status in statuses} == {"c-1"}
    status = await ended(other, ref, "c-1")
    assert (status.exit_code, status.timed_out, status.output_size) == (5, False, 8)
    assert await other.command_output(ref, "c-1", offset=4, limit=100) == b"err\n"
    assert (await runtime.start_command(ref, "c-1", spec)).exit_code == 5
    assert (house.folder(ref) / "count.txt").read_text() == "ran\n"


async def test_a_ledger_command_is_followed_from_where_one_left_off(house: House) -> None:
    runtime, ref = await running(house)
    await runtime.start_command(ref, "f", ExecSpec("for n in 1 2 3 4; do echo $n; sleep 0.2; done"))
    later = await house.open()
    items = [item async for item in later.follow_command(ref, "f", offset=2)]
    assert b"".join(item for item in items if isinstance(item, bytes)) == b"2\n3\n4\n"
    assert items[-1] == CommandStatus("f", 0, 8)


async def test_a_kill_that_overtakes_the_start_of_a_ledger_command_wins(house: House) -> None:
    runtime, ref = await running(house)
    await runtime.kill_command(ref, "late")
    status = await runtime.start_command(ref, "late", ExecSpec("echo ran > ran.txt"))
    assert (status.exit_code, status.note) == (137, "killed before it began")
    assert not (house.folder(ref) / "ran.txt").exists()


async def test_a_ledger_command_is_killed_with_its_tree(house: House) -> None:
    runtime, ref = await running(house)
    await runtime.start_command(ref, "k", ExecSpec(STUBBORN.format(name="up"), timeout_s=600))

    async def up() -> bool:
        return (house.folder(ref) / "up").exists()

    await until(up)
    async with asyncio.timeout(6):
        await runtime.kill_command(ref, "k")
        await runtime.kill_command(ref, "k")
    status = await runtime.command_status(ref, "k")
    assert status is not None
    assert status.exit_code not in (0, None)
    assert not await alive(runtime, ref, "sleep")


async def test_a_ledger_commands_time_and_output_have_bounds(house: House) -> None:
    runtime, ref = await running(house)
    await runtime.start_command(ref, "t", ExecSpec("sleep 60", timeout_s=0.5))
    size = OUTPUT_LIMIT + 5_000_000
    await runtime.start_command(ref, "big", ExecSpec(f"head -c {size} /dev/zero"))
    late = await ended(runtime, ref, "t")
    assert (late.exit_code, late.timed_out) == (124, True)
    big = await ended(runtime, ref, "big")
    assert big.exit_code == 0
    tail = await runtime.command_output(ref, "big", offset=OUTPUT_LIMIT, limit=1000)
    assert re.search(rb"cut at \d+ bytes; 5000000 more", tail)


async def test_a_command_that_lost_its_container_says_so(house: House) -> None:
    runtime, ref = await running(house)
    await runtime.start_command(ref, "r", ExecSpec("echo begun; sleep 300", timeout_s=600))

    async def begun() -> bool:
        return await runtime.command_output(ref, "r", offset=0, limit=100) == b"begun\n"

    await until(begun)
    await runtime.stop(ref, grace_s=1)
    with pytest.raises(NotRunningError):
        await runtime.command_status(ref, "r")
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    status = await runtime.start_command(ref, "r", ExecSpec("echo begun; sleep 300", timeout_s=600))
    assert status.exit_code == 137
    assert "killed" in status.note
    assert await runtime.command_output(ref, "r", offset=0, limit=100) == b"begun\n"


async def test_ids_are_names_not_paths(house: House) -> None:
    runtime, ref = await running(house)
    for bad in ("../x", "a/b", "", "x" * 65, ".hidden", "a\0b"):
        with pytest.raises(SpecInvalidError):
            await runtime.start_command(ref, bad, ExecSpec("true"))


# --- terminal ---


async def seen(terminal: object, needle: bytes) -> bytes:
    got = b""
    async with asyncio.timeout(10):
        while needle not in got:
            data = await terminal.read()  # type: ignore[attr-defined]
            assert data, f"it ended after {got!r}"
            got += data
    return got


async def test_a_terminal_outlives_its_client(house: House) -> None:
    runtime, ref = await running(house)
    async with runtime.terminal(ref, session=None, cols=80, rows=24) as terminal:
        session = terminal.session
        await terminal.write(b"stty size; X=kept; echo $((6*7))-here\n")
        assert b"24 80" in await seen(terminal, b"42-here")
        await terminal.resize(120, 40)
        await terminal.write(b"stty size; echo $((6*7))-there\n")
        assert b"40 120" in await seen(terminal, b"42-there")
    later = await house.open()
    async with later.terminal(ref, session=session, cols=100, rows=30) as terminal:
        assert terminal.session == session
        await seen(terminal, b"42-there")  # the replay
        await terminal.write(b"echo still-$X; stty size; exit\n")
        rest = await seen(terminal, b"still-kept")
        async with asyncio.timeout(10):
            while data := await terminal.read():
                rest += data
        assert b"30 100" in rest


async def test_two_clients_see_one_shell_and_shells_are_bounded(house: House) -> None:
    runtime, ref = await running(house)
    async with (
        runtime.terminal(ref, session="one", cols=80, rows=24) as first,
        runtime.terminal(ref, session="one", cols=80, rows=24) as second,
    ):
        await first.write(b"echo $((40+2))-both\n")
        await asyncio.gather(seen(first, b"42-both"), seen(second, b"42-both"))
    for n in range(7):
        async with runtime.terminal(ref, session=f"s{n}", cols=80, rows=24) as terminal:
            await terminal.write(b"echo $((40+2))\n")
            await seen(terminal, b"42")
    async with runtime.terminal(ref, session="nine", cols=80, rows=24) as terminal:
        with pytest.raises(ResourcesExhaustedError):
            await terminal.read()


# --- isolation ---


async def test_the_server_is_nobody_special_and_can_only_write_its_own(house: House) -> None:
    runtime, ref = await running(house)
    out, _, _ = await run(runtime, ref, "id -u; touch /usr/x 2>/dev/null && echo bad; touch here /tmp/t && echo good")
    if house.settings.mode == "local" and not getattr(runtime, "sandboxed", True):
        pytest.skip("bubblewrap doesn't work here: plain process groups are no isolation, and the driver says so")
    uid, *rest = out.split()
    assert int(uid) != 0
    assert rest == ["good"]
    capabilities, _, _ = await run(runtime, ref, "grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status")
    assert re.findall(r"\t(\w+)", capabilities) == ["0000000000000000", "1"]


async def test_limits_are_applied(house: House) -> None:
    runtime, ref = await running(house)
    assert (await run(runtime, ref, "ulimit -n"))[0].strip() == "1024"
    script = (
        "import os, time\npids = []\ntry:\n  for _ in range(200):\n    pid = os.fork()\n"
        "    if not pid: time.sleep(20); os._exit(0)\n    pids.append(pid)\nexcept OSError: print('bounded')\n"
        "for p in pids: os.kill(p, 9)\n"
    )
    out, errors, _ = await run(runtime, ref, 'python3 -c "$SCRIPT"', environment={"SCRIPT": script})
    assert out == "bounded\n", errors


async def test_variables_reach_the_server_and_stay_out_of_its_arguments(house: House) -> None:
    secret = "s3cret-value"
    runtime, ref = await running(house, environment={"TOKEN": secret, "PORT": "1", "LD_TEST": "x"})
    await until(lambda: runtime.probe(ref, 8000))  # PORT is ours
    out, _, _ = await run(runtime, ref, 'cat /proc/*/cmdline 2>/dev/null | tr "\\0" " "; echo; echo $TOKEN')
    arguments, _, value = out.strip().rpartition("\n")
    assert value == secret
    assert secret not in arguments
    assert secret not in json.dumps([str(status) for status in await runtime.discover()])


async def test_ready_says_that_it_can(house: House) -> None:
    runtime = await house.open()
    await runtime.ready()
