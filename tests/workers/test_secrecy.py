"""What another process of the same user sees of one that holds secrets."""

import asyncio
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

HOLDER = """
import ctypes, os, sys
from workers.secrecy import keep_to_itself
if os.geteuid() == 0:
    os.setgid(1234)
    os.setuid(1234)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # as in a container that began with this user: a change of it closes, too
if sys.argv[1] == "closed":
    keep_to_itself()
os.write(1, b"ready")
sys.stdin.read()
"""

NEIGHBOUR = """
import os, sys
if os.geteuid() == 0:
    os.setgid(1234)
    os.setuid(1234)
for name in ("environ", "mem", "maps", "fd"):
    path = f"/proc/{sys.argv[1]}/{name}"
    try:
        os.listdir(path) if name == "fd" else open(path, "rb").close()
    except PermissionError:
        print("refused", name)
    else:
        print("open", name)
"""


async def run(program: str, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )


@pytest.mark.parametrize("way", ["closed", "as it is"])
async def test_a_neighbour_of_the_same_user_sees_no_secrets(way: str) -> None:
    async with asyncio.timeout(30):
        holder = await run(HOLDER, way)
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert await holder.stdout.readexactly(5) == b"ready"
        neighbour = await run(NEIGHBOUR, str(holder.pid))
        answer, _ = await neighbour.communicate()
        holder.stdin.close()
        assert await holder.wait() == 0
    lines = answer.decode().splitlines()
    if way == "closed":
        assert lines == ["refused environ", "refused mem", "refused maps", "refused fd"]
    else:
        assert "open environ" in lines
