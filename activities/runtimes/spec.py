"""What all drivers share about a dev server: its hash, its places, its variables, its launcher."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath

from activities.errors import SpecInvalidError
from activities.ports import DevServerSpec
from workflows.contracts.names import preview_host

WORKSPACE = "/workspace"
PROJECT_FOLDER = "/workspace/app"
"""Where a project lies in its container. What templates need stands beside it, baked into the image."""

CACHE_FOLDER = "/cache"
HOME_FOLDER = "/home/dev"
"""A package cache of one user's projects; a home in memory."""

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

LAUNCHER = r"""
exec 2>&1
command=$1; install=$2; shift 2
fingerprint() {
  { printf '%s\n' "$install"; for input in "$@"; do
    printf '%s\n' "$input"; [ ! -f "$input" ] || sha256sum < "$input"; done; } | sha256sum | cut -c1-64
}
if [ -n "$install" ]; then
  if [ "$(cat .studio/installed 2>/dev/null)" != "$(fingerprint "$@")" ]; then
    echo "studio: installing: $install"
    sh -c "$install" || { code=$?; echo "studio: install failed with exit code $code" >&2; exit "$code"; }
    mkdir -p .studio && fingerprint "$@" > .studio/installed.new && mv .studio/installed.new .studio/installed
  fi
fi
exec sh -c "$command"
"""
"""Run by `sh` in the project's folder with `command install [input …]`: install when its inputs have changed since
it last succeeded, then become the server. All that is written goes into one stream, so that the log keeps its order.
Text rather than a file, so that it needs no image and no mount.
"""


def launcher_arguments(spec: DevServerSpec) -> list[str]:
    """What follows `sh -c LAUNCHER` for this spec."""
    return ["studio", spec.command, spec.install or "", *spec.install_inputs]


def spec_hash(spec: DevServerSpec) -> str:
    """A name for all that the container is made from; any change gives another. 64 hex digits."""
    plain = asdict(spec)
    plain["environment"] = dict(spec.environment)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Surroundings:
    """Where a server listens, what it is called from outside, and where what isn't the project's may be kept."""

    host: str
    port: int
    preview_domain: str
    home: str
    cache: str


def server_environment(spec: DevServerSpec, around: Surroundings) -> dict[str, str]:
    """The owner's variables, and over them ours."""
    host = preview_host(spec.ref, around.preview_domain)
    return {
        "npm_config_fund": "false",
        "npm_config_update_notifier": "false",
        **spec.environment,
        "PORT": str(around.port),
        "HOST": around.host,
        "HOME": around.home,
        "STUDIO_PREVIEW_HOST": host,
        # Vite refuses hosts that it doesn't know; our templates name theirs, a project from elsewhere doesn't.
        "__VITE_ADDITIONAL_SERVER_ALLOWED_HOSTS": host,
        "npm_config_cache": f"{around.cache}/npm",
        "PIP_CACHE_DIR": f"{around.cache}/pip",
        "UV_CACHE_DIR": f"{around.cache}/uv",
    }


def project_path(cwd: str, root: str = PROJECT_FOLDER) -> str:
    """A command's folder, inside the project. Raises `SpecInvalidError` for one that leaves it."""
    path = PurePosixPath(cwd)
    if path.is_absolute() or ".." in path.parts or "\0" in cwd:
        raise SpecInvalidError("The working directory must be a relative path inside the project.")
    return str(PurePosixPath(root) / path)


def check_environment(environment: Mapping[str, str]) -> None:
    """Raise `SpecInvalidError` for a name or value that no process can have."""
    for name, value in environment.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise SpecInvalidError("A variable's name must not be empty nor hold '='; neither may hold a zero byte.")


def check_run_id(value: str) -> str:
    """A command's or session's id, safe as a file name. Raises `SpecInvalidError` for another."""
    if not _RUN_ID.fullmatch(value) or value == "lock":
        raise SpecInvalidError("An id has up to 64 letters, digits, dots, dashes and underscores.")
    return value
