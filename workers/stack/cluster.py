"""The cluster that a stack's projects live in: found, and ready for them, before anything starts."""

import asyncio
import os
from asyncio.subprocess import DEVNULL, PIPE, create_subprocess_exec
from dataclasses import dataclass
from pathlib import Path

from workers.settings import Settings
from workers.stack.data_directory import StackError

_SCRIPT = Path(__file__).parents[2] / "k8s" / "cluster"
_CHECK_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Cluster:
    """`old_traefik`: the program of Traefik 3.0, where the cluster is too old for later ones; else None."""

    kubeconfig: Path
    old_traefik: Path | None


async def find_cluster(settings: Settings) -> Cluster:
    """The cluster of `KUBECONFIG`, else the one of `make cluster`. Raises `StackError` that says what to do when it
    doesn't answer, or keeps projects' files anywhere but in these settings' `PROJECTS_ROOT`.
    """
    process = await create_subprocess_exec(
        str(_SCRIPT), "check", stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env={**os.environ, **_environment(settings)}
    )
    try:
        async with asyncio.timeout(_CHECK_TIMEOUT_S):
            output, errors = await process.communicate()
    except TimeoutError as error:
        raise StackError(f"The cluster didn't answer within {_CHECK_TIMEOUT_S:g} s.") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise StackError(errors.decode(errors="replace").strip())
    found = dict(line.split("=", 1) for line in output.decode().splitlines())
    old_traefik = found.get("traefik")
    return Cluster(Path(found["kubeconfig"]), Path(old_traefik) if old_traefik else None)


def _environment(settings: Settings) -> dict[str, str]:
    """What the script reads, also where `make up` was given it some other way."""
    environment = {"PROJECTS_ROOT": str(settings.files_root)}
    if settings.kubeconfig is not None:
        environment["KUBECONFIG"] = str(settings.kubeconfig)
    return environment
