"""A project's files from both sides at once: a program in the container, and the service in a process of its own.

In a cluster the service is what its pods are, a common user without a privilege, that sees the volume; the program
sees its folder of it by `subPath`. With an engine the service is root, and gives away what it writes.
"""

import asyncio
import io
import json
import os
import stat
import tarfile
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import pytest

from activities.ports import ExecSpec, FilePrecondition, Runtime
from activities.runtimes.guest import collect
from activities.runtimes.open import RuntimeMode
from tests.files.service import RefusedError, Service, Services
from tests.files.work import (
    ANY,
    create,
    delete,
    destroy,
    digest,
    exported,
    files,
    fill,
    put,
    race,
    read,
    replace_and_read,
    watched,
)
from tests.runtimes.conftest import House, no_stage, spec_of
from workflows.contracts.names import ProjectRef

USER, NEIGHBOUR = 71, ProjectRef(72, 1)


@dataclass
class Both:
    """The two sides of one project."""

    ref: ProjectRef
    runtime: Runtime
    service: Service

    async def inside(self, program: str, **variables: str) -> str:
        """Run Python in the container, in the project's folder; what it prints."""
        variables["PROGRAM"] = textwrap.dedent(program)
        spec = ExecSpec('exec python3 -c "$PROGRAM"', environment=variables, timeout_s=60)
        out, errors, end = await collect(self.runtime.exec(self.ref, spec))
        assert end.exit_code == 0, errors.decode(errors="replace")[-2000:]
        return out.decode()

    async def begin_inside(self, name: str, program: str, **variables: str) -> None:
        """Run Python in the container, until it is killed."""
        variables["PROGRAM"] = textwrap.dedent(program)
        spec = ExecSpec('exec python3 -c "$PROGRAM"', environment=variables, timeout_s=60)
        await self.runtime.start_command(self.ref, name, spec)


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with Services() as opened:
        yield opened


@pytest.fixture
def outside(house: House, mode: RuntimeMode, services: Services) -> Service:
    """The service, over a root that its user may change."""
    root = house.settings.projects_root
    uid = 1000 if mode is RuntimeMode.KUBERNETES else None
    for folder in (root, root / "users", root / ".studio-store"):
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0 and uid is not None:
            os.chown(folder, uid, uid)
    for parent in root.parents[:5]:  # pytest's own, closed to others
        if parent.stat().st_mode & stat.S_ISVTX:
            break
        parent.chmod(0o755)
    return services.over(root, uid)


@pytest.fixture
async def both(house: House, outside: Service) -> Both:
    """A project that the service made, with a server that runs in it."""
    ref = ProjectRef(USER, int(uuid4().int % 10**9) + 1)
    house.made.append(ref)
    await outside.do(create, ref)
    runtime = await house.open()
    await runtime.launch(spec_of(ref), on_stage=no_stage)
    return Both(ref, runtime, outside)


# --- names and bytes ---

MAKE_EVERY_NAME = """
import hashlib, json, os, random
dice = random.Random(20)
names = {bytes([n]) for n in range(1, 256)} - {b"/", b"."}
while len(names) < 400:
    size = dice.choice([1, 2, 3, 20, 254, 255])
    kind = dice.randrange(3)
    if kind == 0:
        name = dice.randbytes(size)
    elif kind == 1:
        name = "".join(map(chr, dice.sample([*range(1, 0x2fff), *range(0x1f600, 0x1f640)], size))).encode()[:size]
    else:
        name = bytes(dice.choices(b"-.~ \\\\*?[]{}'\\"$`;&|<>\\n\\r\\t%=:#!", k=size))
    name = name.replace(b"\\0", b"").replace(b"/", b"")
    if name not in (b"", b".", b".."):
        names.add(name)
os.umask(0o022)
os.mkdir("made")
made = {}
for name in names:
    path = b"made/" + name
    content = dice.randbytes(dice.choice([0, 1, 4095, 4096, 70000]))
    with open(path, "wb") as file:
        file.write(content)
    made[path.hex()] = hashlib.sha256(content).hexdigest()
deep = "/".join(f"d{n}" for n in range(100))
os.makedirs(deep)
open(deep + "/end", "wb").write(b"end")
made[(deep + "/end").encode().hex()] = hashlib.sha256(b"end").hexdigest()
print(json.dumps(made))
"""


async def test_whatever_a_program_names_a_file_the_service_has_the_same_bytes(both: Both) -> None:
    made = {bytes.fromhex(path): sha for path, sha in json.loads(await both.inside(MAKE_EVERY_NAME)).items()}
    texts = {}
    for path, sha in made.items():
        with suppress(UnicodeDecodeError):
            texts[path.decode()] = sha
    assert len(texts) > 150
    assert len(made) > len(texts) + 100, "names that are no text are the container's alone"
    assert await both.service.do(files, both.ref) == texts
    packed = await both.service.do(exported, both.ref)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        found = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        assert {name: digest(file.read()) for name, file in found.items() if file is not None} == texts
    await both.service.do(delete, both.ref, "made")
    await both.inside("import os; assert not os.path.lexists('made')")


LOOK_AND_TAKE = """
import hashlib, json, os, stat
found = {}
for folder, names, files in os.walk(b"given"):
    for name in names + files:
        path = os.path.join(folder, name)
        status = os.lstat(path)
        assert status.st_uid == os.getuid() and status.st_gid == os.getgid(), (path, status)
        if stat.S_ISREG(status.st_mode):
            found[path.hex()] = [hashlib.sha256(open(path, "rb").read()).hexdigest(), stat.S_IMODE(status.st_mode)]
print(json.dumps(found))
os.system("given/run.sh")
for path in map(bytes.fromhex, found):
    with open(path, "ab") as file:
        file.write(b"+")
    os.chmod(path, 0o640)
    os.rename(path, os.path.dirname(path) + b"/" + hashlib.sha256(path).hexdigest().encode())
os.mkdir("given/own")
os.chmod("given/own", 0o500)
open("given/deep/er/own", "w").close()
os.unlink("given/deep/er/own")
"""


async def test_what_the_service_writes_is_the_programs_own(both: Both) -> None:
    odd = [
        "-rf",
        "a b",
        "\n",
        "ünï/ćodé",
        "日本語.txt",
        "[...slug].tsx",
        "a\\b",
        "%2e%2e",
        "x" * 255,
        "🙂",
        "'\"$(id)`",
    ]
    contents = {f"given/{name}": name.encode() * n for n, name in enumerate([*odd, *map(chr, range(1, 46))])}
    contents["given/deep/er/" + "/".join(["d"] * 100)] = bytes(300_000)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        script = tarfile.TarInfo("given/run.sh")
        script.mode, body = 0o755, b"#!/bin/sh\necho ran >given/ran\n"
        script.size = len(body)
        archive.addfile(script, io.BytesIO(body))
    await both.service.do(fill, both.ref, contents, packed.getvalue())
    expected = {path: (digest(content), 0o644) for path, content in contents.items()}
    expected["given/run.sh"] = (digest(body), 0o755)
    answer = json.loads(await both.inside(LOOK_AND_TAKE))
    assert {bytes.fromhex(path).decode(): tuple(found) for path, found in answer.items()} == expected
    assert await both.service.do(read, both.ref, "given/ran") == b"ran\n"
    after = await both.service.do(files, both.ref)
    changed = {
        f"{path.rpartition('/')[0]}/{digest(path.encode())}": content + b"+" for path, content in contents.items()
    }
    assert changed.keys() <= after.keys()
    assert all(after[path] == digest(content) for path, content in changed.items())
    taken = f"given/{digest(b'given/run.sh')}"
    assert isinstance(await both.service.do(put, both.ref, taken, b"new", ANY), str)
    await both.inside(f"import os; assert os.stat('{taken}').st_mode & 0o777 == 0o640; os.truncate('{taken}', 1)")


# --- races ---

EXCHANGE = """
import ctypes, os
os.makedirs("door"); os.symlink(os.environ["AWAY"], "trap")
open("door/file", "w").write("mine")
open("plain", "w").write("plain"); os.symlink(os.environ["AWAY"] + "/file", "plain-trap")
renameat2 = ctypes.CDLL(None).renameat2
while True:
    renameat2(-100, b"door", -100, b"trap", 2)
    renameat2(-100, b"plain", -100, b"plain-trap", 2)
"""


@pytest.mark.parametrize("way", ["absolute", "relative"])
async def test_a_link_that_a_program_swaps_in_leads_to_nobody_elses_files(both: Both, way: str) -> None:
    await both.service.do(create, NEIGHBOUR)
    for name in ("file", "elsewhere"):
        await both.service.do(put, NEIGHBOUR, name, b"secret", ANY)
    folder = both.service.root / "users/72/projects/1"
    away = str(folder) if way == "absolute" else os.path.relpath(folder, both.service.root / "users/71/projects/1")
    await both.begin_inside("exchange", EXCHANGE, AWAY=away)
    seen = await both.service.do(race, both.ref, 2.0)
    await both.runtime.kill_command(both.ref, "exchange")
    assert {"bad_path", b"mine", "door/file"} <= seen, "the race wasn't met"
    assert b"secret" not in seen
    assert "door/elsewhere" not in seen
    assert await both.service.do(files, NEIGHBOUR) == dict.fromkeys(("file", "elsewhere"), digest(b"secret"))
    await both.service.do(destroy, NEIGHBOUR)


REPLACE_AND_READ = """
import os
size, seen = 300_000, set()
for n in range(10**9):
    with open("from-inside.new", "wb") as file:
        file.write(bytes([n % 256]) * size)
    os.replace("from-inside.new", "from-inside")
    if os.path.exists("from-outside"):
        content = open("from-outside", "rb").read()
        assert len(content) == size and len(set(content)) == 1, (len(content), set(content))
        seen.add(content[0])
    if os.path.exists("end"):
        break
print(len(seen))
"""


async def test_neither_side_sees_half_a_file_nor_writes_over_what_it_has_not_seen(both: Both) -> None:
    reading = asyncio.create_task(both.inside(REPLACE_AND_READ))
    seen = await both.service.do(replace_and_read, both.ref)
    assert seen > 2
    assert int(await reading) > 2
    etag = await both.service.do(put, both.ref, "shared", b"mine", ANY)
    assert isinstance(etag, str)
    await both.inside("open('shared', 'a').write(' and yours')")
    with pytest.raises(RefusedError, match="stale_file"):
        await both.service.do(put, both.ref, "shared", b"mine again", FilePrecondition(if_match=etag))
    assert await both.service.do(read, both.ref, "shared") == b"mine and yours"


# --- events ---

TICK_THEN_CHANGE = """
import os, time
for n in range(600):
    open(f"tick-{n}", "w").close()
    if os.path.exists("seen"):
        break
    time.sleep(0.1)
os.makedirs("new/deep/er"); open("new/deep/er/a \\u65e5", "w").write("1")
open("given", "a").write("more")
os.rename("old", "moved")
os.unlink("gone"); os.symlink("/etc", "link")
os.makedirs("node_modules/x"); open("node_modules/x/y", "w").close()
"""
CHANGES = {
    ("new/deep/er/a 日", "created"),
    ("given", "modified"),
    ("old/a", "deleted"),
    ("moved/a", "created"),
    ("gone", "deleted"),
    ("link", "created"),
}


async def test_changes_that_a_program_makes_are_told(both: Both) -> None:
    for path in ("given", "old/a", "gone"):
        await both.service.do(put, both.ref, path, b"1", ANY)
    changing = asyncio.create_task(both.inside(TICK_THEN_CHANGE))
    told = await both.service.do(watched, both.ref, CHANGES)
    await changing
    assert told >= CHANGES
    assert {path for path, _ in told} == {"seen", *(path for path, _ in CHANGES)}


# --- the end ---

HOSTILE = """
import os, socket
os.makedirs("locked/below/more"); open("locked/below/file", "w").close()
for path in ("locked/below/more", "locked/below", "locked"):
    os.chmod(path, 0)
os.makedirs("wide"); os.makedirs(b"\\xff/\\xfe")
for n in range(500):
    open(f"wide/{n}", "w").close()
open("unreadable", "w").close(); os.chmod("unreadable", 0)
os.mkdir("sticky"); os.chmod("sticky", 0o3555)
os.mkfifo("fifo"); os.symlink("/", "root"); os.symlink("../..", "up"); os.symlink("loop", "loop")
socket.socket(socket.AF_UNIX).bind("socket")
os.mkdir("doomed"); os.makedirs("doomed/locked/in"); os.chmod("doomed/locked", 0)
for n in range(3000):
    os.mkdir("d"); os.chdir("d")
"""


async def test_a_project_whose_files_a_program_made_to_stay_is_deleted(both: Both, house: House) -> None:
    await both.service.do(create, NEIGHBOUR)
    await both.service.do(put, NEIGHBOUR, "file", b"kept", ANY)
    await both.inside(HOSTILE)
    for path, code in (("fifo", "not_a_file"), ("root/etc/passwd", "bad_path"), ("loop", "bad_path")):
        with pytest.raises(RefusedError, match=code):
            await both.service.do(read, both.ref, path)
    for path in ("doomed", "locked"):
        await both.service.do(delete, both.ref, path)
        assert not (house.folder(both.ref) / path).exists()
    await both.inside("import os; os.makedirs('locked/in'); os.chmod('locked', 0); os.chmod('.', 0)")
    await both.runtime.remove(both.ref)
    left = await both.service.do(destroy, both.ref)
    assert [name for name in left if name.startswith(f"{both.ref.user_id}-{both.ref.project_id}")] == []
    assert not house.folder(both.ref).exists()
    assert await both.service.do(files, NEIGHBOUR) == {"file": digest(b"kept")}
    await both.service.do(destroy, NEIGHBOUR)
