"""The OpenAPI document: what FastAPI derives from the routes, and the errors and headers that belong to all of them."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.errors import FieldError, IncidentProblem, Problem, ValidationProblem, problem_response
from api.openai.errors import PREFIX as OPENAI_PREFIX
from api.openai.schemas import OpenAIError, OpenAIErrorDetail

_METHODS = {"get", "put", "post", "delete", "patch", "head"}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body within 24 hours gives the first answer again.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}


def install_openapi(app: FastAPI) -> None:
    """Serve the completed document at `/openapi.json`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            )
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _complete(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (Problem, ValidationProblem, IncidentProblem, FieldError, OpenAIErrorDetail, OpenAIError):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
        schema.pop("$defs", None)
        schemas[model.__name__] = schema
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for name, path in document["paths"].items():
        for method, operation in path.items():
            if method in _METHODS:
                _complete_operation(method, operation)
                if name.startswith(f"{OPENAI_PREFIX}/"):
                    _word_as_openai(operation)
    return document


def _complete_operation(method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    if _is_fastapis_own_422(responses.get("422")):
        del responses["422"]
    common = [500, 503]
    if operation.get("security"):
        common += [401, 403]
    if operation.get("parameters") or "requestBody" in operation or method == "post":
        common.append(422)
    if "requestBody" in operation:
        common += [400, 413]
    if method == "post":
        common.append(409)
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
    for status in sorted(common):
        responses.setdefault(str(status), problem_response(status))


def _word_as_openai(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    schema = {"$ref": f"#/components/schemas/{OpenAIError.__name__}"}
    for status in sorted({"400", "404", "429", *(code for code in responses if not code.startswith("2"))}):
        response = problem_response(int(status))
        responses[status] = {**response, "content": {"application/json": {"schema": schema}}}


def _is_fastapis_own_422(response: dict[str, Any] | None) -> bool:
    return response is not None and "application/json" in response.get("content", {})
