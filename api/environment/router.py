"""`/api/projects/{id}/env`: variables of the dev server. Values go in and never come out."""

import re
from typing import Annotated

from fastapi import APIRouter, Body
from pydantic import AfterValidator, BaseModel

from api.errors import problems
from api.projects.dependencies import OwnedProject
from api.services import ServicesDep
from storage import environment, projects
from workflows.contracts.errors import NotFoundError

router = APIRouter(prefix="/api/projects/{project_id}", tags=["environment variables"])

MAX_VARIABLES = 100
MAX_NAME = 128
MAX_VALUE_BYTES = 32 * 1024

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED_NAME = "PORT"
_RESERVED_PREFIX = "STUDIO_"


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise ValueError(f"a name has letters, digits and `_`, at most {MAX_NAME}, and doesn't begin with a digit")
    if name == _RESERVED_NAME or name.startswith(_RESERVED_PREFIX):
        raise ValueError(f"`{_RESERVED_NAME}` and names that begin with `{_RESERVED_PREFIX}` are the service's own")
    return name


def _check_value(value: str) -> str:
    if "\0" in value:
        raise ValueError("a value can't hold the NUL character")
    if len(value.encode()) > MAX_VALUE_BYTES:
        raise ValueError(f"a value has at most {MAX_VALUE_BYTES} bytes")
    return value


VariableName = Annotated[str, AfterValidator(_check_name)]
VariableValue = Annotated[str, AfterValidator(_check_value)]
Variables = Annotated[
    dict[VariableName, VariableValue | None],
    Body(
        max_length=MAX_VARIABLES,
        description="All variables by name; null keeps the value that the name has.",
        examples=[{"API_KEY": "secret", "KEPT": None}],
    ),
]


class EnvironmentOut(BaseModel):
    """The names that are set, sorted; values are never shown."""

    items: list[str]


@router.get("/env", responses=problems(401, 403, 404, 422))
async def get_environment(project: OwnedProject, services: ServicesDep) -> EnvironmentOut:
    """The names of the variables that are set."""
    async with services.database.reading() as session:
        return EnvironmentOut(items=await environment.names(session, project.id))


@router.put("/env", responses=problems(401, 403, 404, 413, 422, 503))
async def put_environment(project: OwnedProject, variables: Variables, services: ServicesDep) -> EnvironmentOut:
    """Replace the whole set; it is applied at the next start. A name that isn't in the body is unset.

    Since values are never shown, null keeps a name's value, so that one variable can be changed without knowing the
    others; null for a name that has none does nothing. 422 for `PORT` and `STUDIO_…`, which the service sets.
    """
    async with services.database.transaction() as session:
        if await projects.lock(session, project.id) is None:
            raise NotFoundError
        return EnvironmentOut(items=await environment.replace(session, project.id, variables, services.secrets))
