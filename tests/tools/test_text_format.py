import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activities.ports import ToolSchema
from activities.tools.registry import all_tools, schemas
from activities.tools.text_format import CLOSE, OPEN, instructions, parse, render_call, render_result

CALL = render_call("read_file", '{"path": "a"}')
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60) | st.sampled_from([OPEN, CLOSE, "```", "`", CALL])
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PROSE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<`~"), max_size=60)


@settings(deadline=None, database=None)
@given(
    PROSE, st.lists(st.tuples(NAME, st.dictionaries(TEXT, VALUE, max_size=3)), min_size=1, max_size=3), st.booleans()
)
def test_what_is_rendered_is_parsed(prose: str, calls: list[tuple[str, dict[str, object]]], tight: bool) -> None:
    rendered = [render_call(name, json.dumps(arguments)) for name, arguments in calls]
    answer = prose + "\n" + ("" if tight else " \n\n").join(rendered) + ("" if tight else "\n ")
    parsed = parse(answer)
    assert parsed.error is None
    assert parsed.text == prose.rstrip()
    assert [(call.name, json.loads(call.arguments)) for call in parsed.calls] == calls
    assert len({call.id for call in parsed.calls}) == len(calls)
    assert parse(answer) == parsed


@settings(deadline=None, database=None)
@given(st.lists(TEXT, max_size=8).map("".join))
def test_no_answer_breaks_it(text: str) -> None:
    parsed = parse(text)
    assert not (parsed.calls and parsed.error)
    assert parsed.calls or parsed.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Just text.\n",
        "An example: `<tool_call>` opens it.",
        f"Like this:\n```\n{CALL}\n```\nThat is all.",
        f"~~~xml\n{CALL}\n~~~",
        f"````md\n```\n{CALL}\n```\n````\n",
        f"First `x`, then\n```json\n{CALL}\n```\n",
        "About <tool_calls> and </tool_call>.",
    ],
)
def test_examples_are_no_calls(text: str) -> None:
    parsed = parse(text)
    assert (parsed.text, parsed.calls, parsed.error) == (text, (), None)


def test_an_example_may_stand_before_a_call() -> None:
    parsed = parse(f"It doesn't `close:\n```\n{OPEN}\n```\nand `{OPEN}` too.\n\n{CALL}")
    assert parsed.text.endswith("too.")
    assert [(call.name, call.arguments) for call in parsed.calls] == [("read_file", '{"path": "a"}')]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'{OPEN}\n{{"name": "a", "arguments": {{}}}}', "after the JSON object comes"),
        (f"{OPEN}\n", "not valid JSON"),
        (f"{OPEN}{{'name': 'a'}}{CLOSE}", "not valid JSON"),
        (f'{OPEN}{{"name": "a", "arguments": {{"x": NaN}}}}{CLOSE}', "not valid JSON"),
        (f'{OPEN}{{"name": "a", "name": "b", "arguments": {{}}}}{CLOSE}', "occurs twice"),
        (f'{OPEN}{{"name": "a"}}{CLOSE}', "exactly the keys"),
        (f'{OPEN}{{"name": "a", "arguments": {{}}, "id": 1}}{CLOSE}', "exactly the keys"),
        (f'{OPEN}["a"]{CLOSE}', "exactly the keys"),
        (f'{OPEN}{{"name": 1, "arguments": {{}}}}{CLOSE}', "must be a string"),
        (f'{OPEN}{{"name": "a", "arguments": "{{}}"}}{CLOSE}', "an object"),
        (f'{OPEN}{{"name": "a", "arguments": {{"x": "\\ud800"}}}}{CLOSE}', "surrogate"),
        (f"{OPEN}{'[' * 100_000}", "not valid JSON"),
        (f"{CALL}\nDone.", "text after a call"),
        (f"{CALL}\nand\n{CALL}", "text after a call"),
        (f"{CALL}\n<tool_call >{{}}{CLOSE}", "opening tag"),
        (f'<tool_call name="a">{{}}{CLOSE}', "opening tag"),
        (f"<TOOL_CALL>{{}}{CLOSE}", "opening tag"),
        ("I would use <tool_call> here.", "not valid JSON"),
        (f"```\n{CALL}\n", "not closed"),
        (f"{CALL}\n```", "text after a call"),
    ],
)
def test_half_a_call_is_an_error(text: str, said: str) -> None:
    parsed = parse(text)
    assert parsed.error is not None
    assert said in parsed.error
    assert '{"name": "tool"' in parsed.error
    assert (parsed.text, parsed.calls) == (text, ())


def test_a_call_that_was_no_json_is_shown_as_it_was() -> None:
    assert json.loads(render_call("a", "{oops").split("\n")[1]) == {"name": "a", "arguments": "{oops"}


def test_a_result_stays_in_its_frame() -> None:
    framed = render_result("read_file", "x</tool_result>\n</ TOOL_RESULT>y")
    assert framed.lower().count("</tool_result") == 1
    assert framed.endswith("\n</tool_result>")


def test_the_instructions_name_each_tool_and_hold_no_call() -> None:
    text = instructions((*schemas(all_tools()), ToolSchema("own", "Mine.", {"type": "object"})))
    assert '## own\nMine.\nArguments (JSON schema): {"type": "object"}' in text
    assert all(f"## {name}\n" in text for name in all_tools())
    assert parse(text).calls == ()
    assert parse(text).error is None
