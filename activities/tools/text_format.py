"""Tool calls as text, for models that know no native function calling.

    <tool_call>
    {"name": "read_file", "arguments": {"path": "src/App.jsx"}}
    </tool_call>

Calls stand at the end of an answer, one after the other, with nothing but white space between and after them. What an
answer shows in backticks is an example, no call. All else that begins like a call is an error that the model is told:
half a call is never run.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from activities.ports import RequestedCall, ToolSchema

OPEN: Final = "<tool_call>"
CLOSE: Final = "</tool_call>"

_TAG = re.compile(r"<\s*tool_call\b[^<>]*>?", re.IGNORECASE)
_CODE = re.compile(
    r"^ {0,3}(?P<fence>`{3,}|~{3,})[^`\n]*\n(?:(?:.*?\n)?? {0,3}(?P=fence)[`~]*[ \t]*$|(?P<open>.*\Z))"
    r"|(?<!`)(?P<ticks>`+)(?!`)[^\n]*?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE | re.DOTALL,
)
_SPACE = re.compile(r"\s*")
_SHAPE = f'{OPEN}\n{{"name": "tool", "arguments": {{…}}}}\n{CLOSE}'
_KEYS = {"name", "arguments"}
_RULES = f"""\
To use a tool, end your answer with one or more calls, each exactly in this form:

```
{OPEN}
{{"name": "read_file", "arguments": {{"path": "src/App.jsx"}}}}
{CLOSE}
```

Between the tags stands one JSON object with exactly the keys "name" and "arguments"; in JSON strings a line break is \
written as \\n. Write calls without a code fence around them, nothing but white space between two calls, and nothing \
after the last: the results are told to you in the next message. Write what you think before the first call. An answer \
without a call is your last."""


@dataclass(frozen=True)
class ParsedAnswer:
    """`text`: what stands before the calls. `error`: for the model, when it tried to call; there are no calls then."""

    text: str
    calls: tuple[RequestedCall, ...] = ()
    error: str | None = None


class _NotACallError(Exception):
    """The message says what is wrong."""


def instructions(schemas: Iterable[ToolSchema]) -> str:
    """A section for the system prompt: how to call, and the tools with their schemas."""
    parts = ["# Tools", _RULES]
    for schema in schemas:
        parameters = json.dumps(schema.parameters, ensure_ascii=False)
        parts.append(f"## {schema.name}\n{schema.description}\nArguments (JSON schema): {parameters}")
    return "\n\n".join(parts)


def render_call(name: str, arguments: str) -> str:
    """A call as a model writes it. `arguments`: JSON text as in `RequestedCall`; what is no object becomes a string."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        value = arguments
    call = {"name": name, "arguments": value if isinstance(value, dict) else arguments}
    return f"{OPEN}\n{json.dumps(call, ensure_ascii=False)}\n{CLOSE}"


def render_result(name: str, text: str) -> str:
    """What a call came to, for the message after it. The text can't end its own frame."""
    framed = re.sub(r"</(?=\s*tool_result)", r"<\\/", text, flags=re.IGNORECASE)
    return f"<tool_result name={json.dumps(name, ensure_ascii=False)}>\n{framed}\n</tool_result>"


def parse(text: str) -> ParsedAnswer:
    """Text and calls of a whole answer. Ids follow from the text: the same answer gives the same ones."""
    try:
        start = _first_tag(text)
        if start is None:
            return ParsedAnswer(text)
        digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
        calls = tuple(
            RequestedCall(f"call_{digest}_{number}", name, arguments)
            for number, (name, arguments) in enumerate(_calls(text, start), 1)
        )
    except _NotACallError as error:
        return ParsedAnswer(text, error=f"No tool was called: {error}. A call must look like this:\n{_SHAPE}")
    return ParsedAnswer(text[:start].rstrip(), calls)


def _first_tag(text: str) -> int | None:
    """Where the first call begins, outside of code."""
    position = 0
    while (tag := _TAG.search(text, position)) is not None:
        code = next((span for span in _CODE.finditer(text, position) if span.end() > tag.start()), None)
        if code is None or code.start() > tag.start():
            return tag.start()
        if code["open"] is not None:
            raise _NotACallError("it stands in a code fence that is not closed; write calls without a code fence")
        position = code.end()
    return None


def _calls(text: str, position: int) -> list[tuple[str, str]]:
    calls: list[tuple[str, str]] = []
    while position < len(text):
        if not text.startswith(OPEN, position):
            if calls and _TAG.match(text, position) is None:
                raise _NotACallError("there is text after a call; text stands before the first call")
            raise _NotACallError(f"the opening tag must be {OPEN}")
        value, position = _object(text, _after_space(text, position + len(OPEN)))
        position = _after_space(text, position)
        if not text.startswith(CLOSE, position):
            raise _NotACallError(f"after the JSON object comes {CLOSE}")
        position = _after_space(text, position + len(CLOSE))
        calls.append(_call(value))
    return calls


def _object(text: str, position: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError) as error:
        raise _NotACallError(f"what follows {OPEN} is not valid JSON ({error})") from None


def _call(value: object) -> tuple[str, str]:
    if not isinstance(value, dict) or value.keys() != _KEYS:
        raise _NotACallError('the JSON must be an object with exactly the keys "name" and "arguments"')
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise _NotACallError('"name" must be a string and "arguments" an object')
    rendered = json.dumps(arguments, ensure_ascii=False)
    try:
        (name + rendered).encode()
    except UnicodeEncodeError:
        raise _NotACallError("a string in it has half of a surrogate pair") from None
    return name, rendered


def _after_space(text: str, position: int) -> int:
    space = _SPACE.match(text, position)
    return position if space is None else space.end()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)
