"""How a project starts: as its `studio.toml` says, and where that is silent, as its files suggest.

Tried in this order: Next, Create React App and Vite by the dependencies of `package.json`, FastAPI by a module that
makes a `FastAPI(...)`, a static site by its `index.html`. The detected commands listen on `$PORT`, on all of the
container's addresses unless the runtime sets `HOST`.

The image has the templates' dependencies one directory above the project, so an install is left out as long as the
project asks for exactly these: the same tables in `package.json`, the same lines in `requirements.txt`.
"""

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from activities.ports import FileStore
from workflows.contracts.errors import BadPathError, ConflictError, InvalidError, NotFoundError, TooLargeError
from workflows.contracts.names import ProjectRef

SETTINGS_FILE = "studio.toml"
_TEMPLATES = Path(__file__).parents[2] / "templates"
_BAKED_PACKAGE = _TEMPLATES / "vite-react" / "files" / "package.json"
_BAKED_REQUIREMENTS = _TEMPLATES / "fastapi" / "files" / "requirements.txt"

_MAX_SETTINGS = 64 * 1024
_MAX_SOURCE = 1024 * 1024
_MAX_COMMAND = 4096
_MAX_PORT = 65535
_DEFAULT_PORT = 8000

_NPM_LOCKS = ("package-lock.json", "npm-shrinkwrap.json")
_INSTALL_INPUTS = (
    "package.json",
    *_NPM_LOCKS,
    "pnpm-lock.yaml",
    "yarn.lock",
    "requirements.txt",
    "pyproject.toml",
    "uv.lock",
    "poetry.lock",
)
_PYTHON_MODULES = ("main.py", "app.py", "app/main.py", "src/main.py")
_FASTAPI = re.compile(r"^(?P<name>[A-Za-z_]\w*)\s*(?::[^=\n]+)?=\s*(?:fastapi\.)?FastAPI\(", re.MULTILINE)

_HOST = '"${HOST:-0.0.0.0}"'
_VITE_ARGUMENTS = f'--host {_HOST} --port "$PORT" --strictPort'


@dataclass(frozen=True)
class StartPlan:
    """What a dev server is started with; see `DevServerSpec` for `command`, `install` and `install_inputs`."""

    command: str
    port: int
    install: str | None = None
    install_inputs: tuple[str, ...] = ()


async def detect(files: FileStore, ref: ProjectRef) -> StartPlan:
    """The project's plan.

    Raises `InvalidError`: `bad_studio_toml` for a `studio.toml` that isn't valid, `cannot_detect_start` when neither
    it nor the files tell. `NotFoundError` when the project has no folder.
    """
    settings = _settings(await _text(files, ref, SETTINGS_FILE, _MAX_SETTINGS))
    present = {entry.path for entry in (await files.entries(ref)).items if entry.type != "dir"}
    inputs = tuple(name for name in _INSTALL_INPUTS if name in present)
    if "command" in settings:
        plan = StartPlan(settings["command"], _DEFAULT_PORT)
    else:
        plan = await _detected(files, ref, present)
    plan = replace(plan, port=settings.get("port", plan.port))
    if "install" in settings:
        plan = replace(plan, install=settings["install"])
    return replace(plan, install_inputs=inputs if plan.install else ())


# --- studio.toml ------------------------------------------------------------------------------------------------


def _settings(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        settings = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _bad(f"it isn't valid TOML: {error}") from error
    unknown = sorted(settings.keys() - _CHECKS.keys())
    if unknown:
        raise _bad(f"it has the unknown key {unknown[0]!r}; there are {', '.join(sorted(_CHECKS))}")
    for key, value in settings.items():
        _CHECKS[key](key, value)
    return settings


def _check_command(key: str, value: object) -> None:
    if not isinstance(value, str):
        raise _bad(f"{key} must be a text, like {key} = {_EXAMPLES[key]!r}")
    if not value.strip() or len(value) > _MAX_COMMAND or "\0" in value:
        raise _bad(f"{key} must not be empty, nor longer than {_MAX_COMMAND} characters")


def _check_port(key: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_PORT:
        raise _bad(f"{key} must be a number from 1 to {_MAX_PORT}, without quotes")


_CHECKS: dict[str, Callable[[str, object], None]] = {
    "command": _check_command,
    "port": _check_port,
    "install": _check_command,
}
_EXAMPLES = {"command": "npm run dev -- --port $PORT", "install": "npm ci"}


def _bad(reason: str) -> InvalidError:
    return InvalidError(f"{SETTINGS_FILE} can't be used: {reason}.", code="bad_studio_toml")


# --- Detection --------------------------------------------------------------------------------------------------


async def _detected(files: FileStore, ref: ProjectRef, present: set[str]) -> StartPlan:
    package = _package(await _text(files, ref, "package.json", _MAX_SOURCE))
    plan = None if package is None else _node_plan(package)
    if plan is not None and package is not None:
        return replace(plan, install=_npm_install(package, present))
    plan = await _fastapi_plan(files, ref)
    if plan is not None:
        return replace(plan, install=_pip_install(await _text(files, ref, "requirements.txt", _MAX_SOURCE)))
    if "index.html" in present:
        return StartPlan(f"vite {_VITE_ARGUMENTS}", 5173)
    seen = "package.json names neither next nor react-scripts nor vite" if package else "there is no package.json"
    raise InvalidError(
        f"It can't be seen how this project starts: {seen}, no {' or '.join(_PYTHON_MODULES[:2])} makes a FastAPI app, "
        f"and there is no index.html. Add a {SETTINGS_FILE} with command and port.",
        code="cannot_detect_start",
    )


def _package(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        package = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidError(f"package.json isn't valid JSON: {error}.", code="cannot_detect_start") from error
    if not isinstance(package, dict):
        raise InvalidError("package.json must hold an object.", code="cannot_detect_start")
    return package


def _node_plan(package: dict[str, Any]) -> StartPlan | None:
    needed = _table(package, "dependencies") | _table(package, "devDependencies")
    if "next" in needed:
        return StartPlan(f'next dev --hostname {_HOST} --port "$PORT"', 3000)
    if "react-scripts" in needed:
        return StartPlan(f"HOST={_HOST} BROWSER=none react-scripts start", 3000)
    if "vite" in needed:
        script = str(_table(package, "scripts").get("dev", "vite")).strip()
        # Vite itself starts faster than npm; a script that does more than that is kept.
        custom = script != "vite" and re.search(r"\bvite\b", script) is not None
        return StartPlan(f"{'npm run dev --' if custom else 'vite'} {_VITE_ARGUMENTS}", 5173)
    return None


async def _fastapi_plan(files: FileStore, ref: ProjectRef) -> StartPlan | None:
    for path in _PYTHON_MODULES:
        match = _FASTAPI.search(await _text(files, ref, path, _MAX_SOURCE) or "")
        if match is not None:
            module = path.removesuffix(".py").replace("/", ".")
            command = f'uvicorn {module}:{match["name"]} --host {_HOST} --port "$PORT" --reload --reload-exclude .venv'
            return StartPlan(command, 8000)
    return None


# --- Installs ---------------------------------------------------------------------------------------------------


def _npm_install(package: dict[str, Any], present: set[str]) -> str | None:
    baked = json.loads(_BAKED_PACKAGE.read_text(encoding="utf-8"))
    if all(_table(package, name) == _table(baked, name) for name in ("dependencies", "devDependencies")):
        return None
    return "npm ci" if any(lock in present for lock in _NPM_LOCKS) else "npm install"


def _pip_install(requirements: str | None) -> str | None:
    if requirements is None or _lines(requirements) == _lines(_BAKED_REQUIREMENTS.read_text(encoding="utf-8")):
        return None
    return "python3 -m venv .venv && .venv/bin/pip install --quiet -r requirements.txt"


def _lines(requirements: str) -> set[str]:
    lines = {line.partition("#")[0].strip() for line in requirements.splitlines()}
    return lines - {""}


def _table(package: dict[str, Any], name: str) -> dict[str, Any]:
    table = package.get(name)
    return table if isinstance(table, dict) else {}


async def _text(files: FileStore, ref: ProjectRef, path: str, limit: int) -> str | None:
    """The file's text, None when there is no such file."""
    code = "bad_studio_toml" if path == SETTINGS_FILE else "cannot_detect_start"
    try:
        return (await files.read(ref, path, limit=limit)).decode()
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path} isn't UTF-8 text.", code=code) from error
    except TooLargeError as error:
        raise InvalidError(error.detail, code=code) from error
    except (NotFoundError, ConflictError, BadPathError):
        return None  # a directory, a FIFO or a link out of the project counts as no file
