"""OpenAI's shapes, as far as the OpenAPI document tells them; their own documentation tells the rest."""

from typing import Any, Final, Literal

from pydantic import BaseModel


class ModelCard(BaseModel):
    """A model. Nobody tells when it was made."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "studio"


class ModelCards(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class OpenAIErrorDetail(BaseModel):
    """`type` and `code` as OpenAI's; `param`: the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """Every error under `/v1`."""

    error: OpenAIErrorDetail


_MESSAGE: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["role"],
    "properties": {"role": {"type": "string"}, "content": {}},
    "additionalProperties": True,
}
REQUEST_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "title": "CreateChatCompletionRequest",
                    "type": "object",
                    "required": ["messages"],
                    "properties": {
                        "model": {"type": "string", "description": "By default the service's own."},
                        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
                        "stream": {"type": "boolean", "default": False},
                        "stream_options": {
                            "type": "object",
                            "properties": {"include_usage": {"type": "boolean"}},
                            "additionalProperties": True,
                        },
                        "max_tokens": {"type": "integer", "minimum": 1},
                        "max_completion_tokens": {"type": "integer", "minimum": 1},
                        "n": {"type": "integer", "const": 1},
                    },
                    "additionalProperties": True,
                }
            }
        },
    }
}
