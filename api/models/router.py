"""`GET /api/models`."""

from fastapi import APIRouter
from pydantic import BaseModel

from api.auth.dependencies import CurrentUser
from api.errors import problems
from api.fields import Usd
from api.services import ServicesDep

router = APIRouter(prefix="/api/models", tags=["models"])


class ModelOut(BaseModel):
    """A model. Prices are USD for one token, null where nobody says; `context_tokens`: request and answer together.

    `default`: it is taken where none is named.
    """

    id: str
    input_price: Usd | None
    output_price: Usd | None
    context_tokens: int | None
    calls_tools: bool
    default: bool


class ModelList(BaseModel):
    """All of them: there is one page."""

    items: list[ModelOut]
    next_cursor: None = None


@router.get("", responses=problems(429))
async def list_models(_user: CurrentUser, services: ServicesDep) -> ModelList:
    """Every model that the language models' server offers, by id."""
    infos = await services.models.models()
    default = services.models.default_model
    return ModelList(
        items=[
            ModelOut(
                id=info.id,
                input_price=info.input_price,
                output_price=info.output_price,
                context_tokens=info.context_tokens,
                calls_tools=info.calls_tools,
                default=info.id == default,
            )
            for info in infos
        ]
    )
