"""A project's files from a git repository: https only, from public addresses only, bounded in time and size.

git connects to exactly the addresses that were checked (`http.curloptResolve`), so a name that answers differently
the second time gains nothing; redirects and alternates are off. No submodules, hooks, LFS, prompts, credentials or
configuration of this machine. `.git/` is kept: its owner wants to see the history's head, commit and pull.
"""

import asyncio
import os
import re
import signal
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from activities.addresses import HostRefusedError, public_addresses
from activities.files.threads import BlockingPool
from activities.files.trees import leads_out, measure, remove_folder
from workflows.contracts.errors import InvalidError, UnavailableError

HTTPS_PORT = 443
_WATCH_S = 0.2
_MAX_OUTPUT = 64 * 1024
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@+-]{0,199}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PASSING = re.compile(
    r"timed out|Could not resolve|Failed to connect|Connection (reset|refused)|early EOF|error: 5\d\d"
)

_log = structlog.get_logger()
_pool = BlockingPool("git", 4)


@dataclass(frozen=True)
class GitLimits:
    """Seconds for all of it, bytes on disk (`.git/` included), files."""

    timeout_s: float = 120.0
    size: int = 500 * 1024 * 1024
    files: int = 50_000


Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to the addresses that may be connected to. Raises `InvalidError` `bad_git_url`."""


async def git_addresses(host: str, port: int) -> list[str]:
    """All addresses of a public host; see `Resolve`."""
    try:
        return await public_addresses(host, port)
    except HostRefusedError as error:
        raise _bad_url(error.detail) from error
    except UnavailableError as error:
        raise UnavailableError(error.detail, code="git_failed") from error


@dataclass(frozen=True)
class GitAccess:
    """How git may reach hosts: which addresses, and a bundle of further authorities to trust."""

    resolve: Resolve = git_addresses
    authorities: Path | None = None


async def fetch(
    url: str,
    ref: str | None,
    target: Path,
    limits: GitLimits | None = None,
    *,
    access: GitAccess | None = None,
) -> None:
    """Clone the newest commit of `ref` (a branch or tag, None: the repository's default) into the new folder `target`.

    Links that lead out of the tree are removed. Whatever goes wrong, and on a cancel, nothing is left.
    Raises `InvalidError` with `bad_git_url`, `git_failed` (no such repository or branch, not public),
    `git_too_large`, `git_timeout`; `UnavailableError` with `git_failed` when the host doesn't answer.
    """
    limits, access = limits or GitLimits(), access or GitAccess()
    host, port = check_url(url)
    if ref is not None and not _REF.fullmatch(ref):
        raise InvalidError(f"{ref!r} is no name of a branch or tag.", code="git_failed")
    try:
        async with asyncio.timeout(limits.timeout_s):
            addresses = await access.resolve(host, port)
            command = _command(url, ref, target, _Endpoint(host, port, addresses, access.authorities))
            with tempfile.TemporaryDirectory(prefix="studio-git-home-") as home:
                await _clone(command, Path(home), target, limits)
        await _pool.run(lambda: _remove_links_out(target))
    except TimeoutError:
        await _pool.run(lambda: remove_folder(target))
        raise InvalidError(
            f"The repository didn't arrive within {limits.timeout_s:g} seconds.", code="git_timeout"
        ) from None
    except BaseException:
        await _pool.run(lambda: remove_folder(target))
        raise


def check_url(url: str) -> tuple[str, int]:
    """Host and port of an acceptable address. Raises `InvalidError` `bad_git_url`; looks nothing up."""
    if not url.isascii() or not url.isprintable() or " " in url:
        raise _bad_url("it has characters that no address has")
    try:
        parts = urlsplit(url)
        port = parts.port or HTTPS_PORT
    except ValueError as error:
        raise _bad_url("it is no address") from error
    if parts.scheme != "https":
        raise _bad_url("it must begin with https://")
    if "@" in parts.netloc:
        raise _bad_url("it must not hold a user name or password")
    if parts.query or parts.fragment:
        raise _bad_url("it must not have a query or fragment")
    if not parts.hostname or not _HOST.fullmatch(parts.hostname):
        raise _bad_url("it needs a host name")
    return parts.hostname, port


def _bad_url(reason: str) -> InvalidError:
    return InvalidError(f"The git address can't be used: {reason}.", code="bad_git_url")


# --- git --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Endpoint:
    host: str
    port: int
    addresses: list[str]
    authorities: Path | None


def _command(url: str, ref: str | None, target: Path, endpoint: _Endpoint) -> list[str]:
    addresses = ",".join(f"[{address}]" if ":" in address else address for address in endpoint.addresses)
    settings = [
        "protocol.allow=never",
        "protocol.https.allow=always",
        "http.followRedirects=false",
        f"http.curloptResolve={endpoint.host}:{endpoint.port}:{addresses}",
        "http.proxy=",  # a proxy would look the name up again
        "http.lowSpeedLimit=1000",
        "http.lowSpeedTime=30",
        "credential.helper=",
        "core.hooksPath=/dev/null",
        "core.fsmonitor=false",
        "core.bigFileThreshold=1m",  # larger ones are streamed, not held in memory
        "submodule.recurse=false",
        "filter.lfs.process=",
        "filter.lfs.smudge=",
        "filter.lfs.required=false",
        "transfer.bundleURI=false",
        "fetch.fsckObjects=true",
        "pack.threads=1",
        "gc.auto=0",
    ]
    if endpoint.authorities is not None:
        settings.append(f"http.sslCAInfo={endpoint.authorities}")
    options = ["--depth=1", "--single-branch", "--no-tags", "--no-recurse-submodules", "--template=", "--quiet"]
    if ref is not None:
        options.append(f"--branch={ref}")
    configured = [word for setting in settings for word in ("-c", setting)]
    return ["git", *configured, "clone", *options, "--", url, str(target)]


async def _clone(command: list[str], home: Path, target: Path, limits: GitLimits) -> None:
    # No file may outgrow the bound between two looks at the folder's size: the shell's limit is in 512 bytes. With the
    # signal ignored git says "File too large" instead of dying without a word.
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", 'trap "" XFSZ && ulimit -f "$0" && exec "$@"', str(limits.size // 512 + 1)),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(home),
        start_new_session=True,
    )
    reading = asyncio.create_task(_last_output(process))
    watching = asyncio.create_task(_outgrown(target, limits))
    try:
        await asyncio.wait([reading, watching], return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        output = await reading
        code = await process.wait()
    finally:
        watching.cancel()
        await _end(process, reading, watching)
    await _check_size(target, limits)
    if code != 0 and "File too large" in output:
        raise _too_large(limits)
    if code != 0:
        raise _failure(output)


async def _end(process: asyncio.subprocess.Process, *tasks: "asyncio.Task[object]") -> None:
    """Kill git and its helpers, and wait until nothing writes into the target any more."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    while True:
        try:
            await process.wait()
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            continue  # killed already: this ends at once, and the cancel is raised by the block that we leave
        return


async def _last_output(process: asyncio.subprocess.Process) -> str:
    if process.stderr is None:
        raise AssertionError("git's stderr is a pipe")
    output = b""
    while data := await process.stderr.read(_MAX_OUTPUT):
        output = (output + data)[-_MAX_OUTPUT:]
    return output.decode(errors="replace")


async def _outgrown(target: Path, limits: GitLimits) -> None:
    """Raise as soon as the folder is over its bounds."""
    while True:
        await asyncio.sleep(_WATCH_S)
        await _check_size(target, limits)


async def _check_size(target: Path, limits: GitLimits) -> None:
    with suppress(FileNotFoundError):
        size, files = await _pool.run(lambda: measure(target, most_entries=limits.files))
        if size > limits.size or files > limits.files:
            raise _too_large(limits)


def _too_large(limits: GitLimits) -> InvalidError:
    return InvalidError(
        f"The repository is larger than {limits.size // 1024 // 1024} MiB or {limits.files:,} files.",
        code="git_too_large",
    )


def _failure(output: str) -> InvalidError | UnavailableError:
    lines = [line.strip() for line in output.splitlines() if line.startswith(("fatal:", "error:", "remote:"))]
    reason = " ".join(lines)[-300:] or "git gave no reason"
    _log.info("git.failed", reason=reason)
    if "terminal prompts disabled" in output or "Authentication failed" in output:
        return InvalidError("There is no public repository at this address.", code="git_failed")
    detail = f"git couldn't fetch the repository: {reason}"
    if _PASSING.search(output):
        return UnavailableError(detail, code="git_failed", retry_after=10)
    return InvalidError(detail, code="git_failed")


def _environment(home: Path) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ASKPASS": "/bin/false",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_ALLOW_PROTOCOL": "https",
        "GIT_ADVICE": "0",
    }


def _remove_links_out(target: Path) -> None:
    pending = [(target, 0)]
    while pending:
        folder, depth = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    if leads_out(os.readlink(entry), depth):  # noqa: PTH115 -- an entry of scandir
                        os.unlink(entry)  # noqa: PTH108 -- as above
                elif entry.is_dir():
                    pending.append((Path(entry), depth + 1))
