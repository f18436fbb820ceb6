from typing import ClassVar

import pytest
from pydantic import BaseModel, Field

from activities.tools import registry
from activities.tools.arguments import ToolArguments
from activities.tools.bounds import bounded
from activities.tools.registry import all_tools, parse, schemas, waves
from activities.tools.tool import Tool, ToolFailure, ToolKind

NAMES = ("read_file", "write_file", "edit_file", "list_files", "search", "run_command", "read_output", "kill_command")


class Inner(ToolArguments):
    title: str = Field(description="A property that is called so.")


class OuterArguments(ToolArguments):
    title: str = Field(description="First.")
    inner: list[Inner] = Field(default=[], description="Second.")
    count: int = Field(default=1, ge=1, description="Third.")


class Outer(Tool[OuterArguments]):
    name: ClassVar[str] = "outer"
    description: ClassVar[str] = "For tests."
    kind: ClassVar[ToolKind] = ToolKind.LOOK
    arguments: ClassVar[type[BaseModel]] = OuterArguments


def test_every_tool_is_found_and_described() -> None:
    tools = all_tools()
    assert {*NAMES, "todo"} <= tools.keys()
    assert list(tools) == sorted(tools)
    for schema in schemas(tools):
        assert schema.description
        assert schema.parameters["type"] == "object"
        assert schema.parameters["additionalProperties"] is False
        assert not [word for word in ("$ref", "$defs", "'title': '") if word in str(schema.parameters)]
        assert all(field.get("description") for field in schema.parameters["properties"].values())


def test_only_looking_has_no_effects() -> None:
    kinds = {name: all_tools()[name].kind for name in NAMES}
    looking = {name for name, kind in kinds.items() if kind is ToolKind.LOOK}
    assert looking == {"read_file", "list_files", "search", "read_output"}


def test_a_schema_holds_all_in_one_piece() -> None:
    assert registry._parameters(Outer()) == {
        "type": "object",
        "additionalProperties": False,
        "required": ["title"],
        "properties": {
            "title": {"type": "string", "description": "First."},
            "inner": {
                "type": "array",
                "default": [],
                "description": "Second.",
                "items": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["title"],
                    "properties": {"title": {"type": "string", "description": "A property that is called so."}},
                },
            },
            "count": {"type": "integer", "minimum": 1, "default": 1, "description": "Third."},
        },
    }


def test_arguments_are_taken_strictly() -> None:
    assert parse(Outer(), '{"title": "a", "inner": [{"title": "b"}], "count": 2}') == OuterArguments(
        title="a", inner=[Inner(title="b")], count=2
    )
    assert parse(all_tools()["list_files"], "  ") == parse(all_tools()["list_files"], "{}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "title: Field required"),
        ("[]", "valid dictionary or object|Input should be an object"),
        ('"title"', "object"),
        ('{"title": "a"', "JSON"),
        ('{"title": "a"} and more', "JSON"),
        ('{"title": "\\ud800"}', "JSON"),
        ('{"title": 1}', "title: Input should be a valid string"),
        ('{"title": "a", "count": "2"}', "count: Input should be a valid integer"),
        ('{"title": "a", "count": 0}', "count: .*greater than or equal to 1"),
        ('{"title": "a", "\\u0000": 1}', "\ufffd: Extra inputs"),
        ('{"title": "a", "colour": 1}', "colour: Extra inputs are not permitted"),
        ('{"title": "a", "inner": [{"title": "b", "x": 1}]}', r"inner\.0\.x: Extra inputs"),
    ],
)
def test_what_does_not_fit_is_told_with_the_schema(text: str, said: str) -> None:
    with pytest.raises(ToolFailure, match=said) as caught:
        parse(Outer(), text)
    assert '"A property that is called so."' in str(caught.value)


def test_many_complaints_are_bounded() -> None:
    with pytest.raises(ToolFailure, match="and 192 more") as caught:
        parse(Outer(), "{" + ",".join(f'"{"x" * 5000}{n}": 1' for n in range(199)) + "}")
    assert len(str(caught.value)) < 10_000


def test_neighbours_of_a_kind_share_a_wave() -> None:
    tools = all_tools()

    def call(name: str, **arguments: object) -> tuple[Tool[BaseModel], BaseModel]:
        tool = tools[name]
        return tool, tool.arguments.model_validate(arguments)

    def edit(path: str) -> tuple[Tool[BaseModel], BaseModel]:
        return call("write_file", path=path, content="")

    look, act = call("list_files"), call("run_command", command="true")
    assert waves([]) == []
    assert waves([look, look, (None, None), act, act, look]) == [0, 0, 0, 1, 1, 2]
    assert waves([edit("a"), edit("b"), edit("./a"), edit("b"), look, edit("a")]) == [0, 0, 1, 1, 2, 3]
    assert waves([edit("a"), (tools["edit_file"], None), edit("a")]) == [0, 0, 1]


def test_alone_shares_with_nobody() -> None:
    class Alone(Outer):
        kind: ClassVar[ToolKind] = ToolKind.ALONE

    alone = (Alone(), None)
    assert waves([alone, alone, (Outer(), None), (Outer(), None), alone]) == [0, 1, 2, 2, 3]


def test_a_text_is_cut_and_says_so() -> None:
    assert bounded("x" * 500, 500) == "x" * 500
    text = "".join(f"{n:5}" for n in range(2000))
    for cut in ("middle", "end"):
        short = bounded(text, 1000, cut=cut, how="Read on")
        note = short[short.index("\n[…") : short.index("]\n") + 2]
        head, tail = short.split(note)
        assert len(short) <= 1000
        assert text.startswith(head)
        assert text.endswith(tail)
        assert f"{len(text) - len(head) - len(tail):,} characters cut. Read on" in note
        assert bool(tail) is (cut == "middle")
