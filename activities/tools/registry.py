"""Finds the tools: every module of this package that defines `TOOL = SomeTool()`. Adding a tool is adding one file."""

import json
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

import activities.tools as package
from activities.ports import ToolSchema
from activities.tools.bounds import bounded
from activities.tools.tool import Tool, ToolFailure, ToolKind

AnyTool = Tool[Any]

_MAX_COMPLAINTS = 8
_SCHEMA_SHOWN = 4_000


@cache
def all_tools() -> Mapping[str, AnyTool]:
    """Every tool by its name, sorted. Raises `TypeError` for a module whose tool breaks the rules of the port."""
    found: dict[str, AnyTool] = {}
    for module in pkgutil.iter_modules(package.__path__):
        tool = getattr(import_module(f"{package.__name__}.{module.name}"), "TOOL", None)
        if tool is not None:
            _check(tool, module.name, found)
            found[tool.name] = tool
    return MappingProxyType(dict(sorted(found.items())))


def schemas(names: Iterable[str]) -> tuple[ToolSchema, ...]:
    """The tools of these names as models are told of them, in that order. Raises `KeyError` for an unknown one."""
    tools = all_tools()
    return tuple(ToolSchema(name, tools[name].description, _parameters(tools[name])) for name in names)


def parse(tool: AnyTool, arguments_text: str) -> BaseModel:
    """The arguments that a model wrote, validated strictly; an empty text is `{}`.

    Raises `ToolFailure` that tells the model what is wrong and what the tool wants.
    """
    try:
        return tool.arguments.model_validate_json(arguments_text.strip() or "{}", strict=True)
    except ValidationError as error:
        complaints = [
            _complaint(item["loc"], item["msg"]) for item in error.errors(include_url=False, include_input=False)
        ]
        more = len(complaints) - _MAX_COMPLAINTS
        if more > 0:
            complaints[_MAX_COMPLAINTS:] = [f"and {more} more"]
        wanted = bounded(json.dumps(_parameters(tool), ensure_ascii=False), _SCHEMA_SHOWN)
        raise ToolFailure(
            bounded(
                f"The arguments of {tool.name} are wrong, nothing was done: {'; '.join(complaints)}.", _SCHEMA_SHOWN
            )
            + f"\nThey must be one JSON object that fits this schema: {wanted}"
        ) from None


def waves(calls: Sequence[tuple[AnyTool | None, BaseModel | None]]) -> list[int]:
    """For each call of a step the wave in which it runs, counted from 0; see `ToolKind`.

    Calls of one wave run side by side. No tool: a name that doesn't exist. No arguments: they didn't fit.
    """
    numbers: list[int] = []
    current: ToolKind | None = None
    paths: set[str] = set()
    for tool, arguments in calls:
        kind = ToolKind.LOOK if tool is None else tool.kind
        path = None if tool is None or arguments is None or kind is not ToolKind.EDIT else tool.touches(arguments)
        joins = kind is current and kind is not ToolKind.ALONE and path not in paths
        if not joins:
            paths.clear()
        if path is not None:
            paths.add(path)
        numbers.append((numbers[-1] if numbers else -1) + (not joins))
        current = kind
    return numbers


def _check(tool: object, module: str, found: Mapping[str, AnyTool]) -> None:
    if not isinstance(tool, Tool):
        raise TypeError(f"{module}.TOOL must be a Tool.")
    if tool.name in found:
        raise TypeError(f"{module}.TOOL has the name of another tool: {tool.name}.")
    if tool.arguments.model_config.get("extra") != "forbid":
        raise TypeError(f"The arguments of {tool.name} must forbid unknown fields.")
    unsaid = [name for name, field in tool.arguments.model_fields.items() if not field.description]
    if unsaid or not tool.description:
        raise TypeError(f"{tool.name} must describe itself and its arguments: {', '.join(unsaid)}.")


def _complaint(place: Sequence[int | str], message: str) -> str:
    path = ".".join(map(str, place)).replace("\0", "\ufffd")
    return f"{path}: {message}" if path else message


@cache
def _parameters(tool: AnyTool) -> dict[str, Any]:
    schema = _undocumented(tool.arguments.model_json_schema())
    plain: dict[str, Any] = _inlined(
        schema, {name: _undocumented(model) for name, model in schema.get("$defs", {}).items()}
    )
    return {"type": "object", "properties": {}, **plain, "additionalProperties": False}


def _undocumented(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's schema without its docstring, which is written for us; the fields' descriptions stay."""
    return {key: value for key, value in model.items() if key != "description"}


def _inlined(node: Any, definitions: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- JSON
    """The schema without references, titles and definitions. Properties may well be called `title`."""
    if isinstance(node, list):
        return [_inlined(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = {**definitions[node["$ref"].rpartition("/")[2]], **node}
        return _inlined({key: value for key, value in target.items() if key != "$ref"}, definitions)
    plain = {
        key: _inlined(value, definitions)
        for key, value in node.items()
        if key not in {"title", "$defs", "properties", "default", "enum", "const", "examples"}
    }
    plain |= {key: node[key] for key in ("default", "enum", "const", "examples") if key in node}
    if "properties" in node:
        plain["properties"] = {name: _inlined(value, definitions) for name, value in node["properties"].items()}
    return plain
