"""`GET /api/templates`."""

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from api.auth.dependencies import CurrentUser
from api.errors import problems
from api.services import ServicesDep

router = APIRouter(prefix="/api/templates", tags=["templates"])


class TemplateOut(BaseModel):
    """A template. `name` is what `POST /api/projects` takes."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    title: str
    description: str


@router.get("", responses=problems(401, 403))
async def list_templates(_user: CurrentUser, services: ServicesDep) -> list[TemplateOut]:
    """Every template, by name."""
    return [TemplateOut.model_validate(template) for _, template in sorted(services.templates.items())]
