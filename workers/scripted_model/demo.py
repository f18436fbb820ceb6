"""The model `demo`: reads the project's page, changes its heading, builds, and says all the while that it is scripted.

It keeps nothing: where it is follows from the tool calls since the user's newest message.
"""

import json
import re
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from workers.scripted_model.answer import Answer, Call, Usage
from workers.scripted_model.conversation import ChatRequest, count_tokens

KEY = "demo"
_PIECES_PER_S = 50.0
_PAGES = {
    "src/App.jsx": "npm run build",
    "index.html": "ls -l index.html",
}
"""Where a template's page is, tried in this order, and what checks it once it has changed."""
_HEADINGS = (
    "Hello from the scripted demo model",
    "The demo model was here again",
    "One heading, changed once more",
)
_EDITS = 2
_TOPIC_CHARS = 120
_SHOWN_CHARS = 300
_NUMBERED_LINE = re.compile(r"^ *\d+\t(.*)$", re.MULTILINE)
_HEADING = re.compile(r"(<h1[^>]*>)([^<>{}]+)</h1>")
_EDITED = "Edited "
_DENIED = "Not done."
"""How the agent's tools begin their answers: an edit that was made, a call that its owner didn't allow."""
_CONNECT = (
    "To connect a real one, put OPENAI_API_BASE, OPENAI_API_KEY and OPENAI_MODEL into `.env` "
    "(or LITELLM_API_BASE and LITELLM_MASTER_KEY for a LiteLLM proxy) and start the stack again."
)
_WHO = f"I am a scripted demo model, not a real language model: whatever you ask, I do the same. {_CONNECT}"


@dataclass(frozen=True)
class _Done:
    """A call of this task and what came back; `result` empty: nothing did."""

    name: str
    arguments: dict[str, Any]
    result: str

    @property
    def path(self) -> str:
        return str(self.arguments.get("path", ""))


@dataclass(frozen=True)
class _Say:
    """What comes next: a text and, before the end, one call."""

    text: str
    name: str = ""
    arguments: dict[str, Any] | None = None


def answer_demo(request: ChatRequest) -> Answer:
    """The next answer: a step of the task where tools are offered, else a few friendly words."""
    say = _next_step(request) if request.tools else _Say(_chat(_topic(request)))
    calls = [Call(f"call_{token_hex(12)}", say.name, json.dumps(say.arguments))] if say.name else []
    chars = len(say.text) + sum(len(call.name) + len(call.arguments) for call in calls)
    return Answer(
        key=KEY,
        pieces=re.findall(r"\s*\S+\s*", say.text),
        calls=calls,
        pieces_per_s=_PIECES_PER_S,
        finish_reason="tool_calls" if calls else "stop",
        usage=Usage(request.tokens(), count_tokens(chars)),
    )


def _chat(topic: str) -> str:
    about = f"You wrote: “{topic}”. A real model would now have something to say about it. " if topic else ""
    return f"Hello! {_WHO}\n\n{about}Give me a task in a project with a page, and you see how an agent works here."


def _topic(request: ChatRequest) -> str:
    position = request.newest_user_message()
    words = " ".join(request.messages[position].text.split()) if position >= 0 else ""
    return words if len(words) <= _TOPIC_CHARS else f"{words[:_TOPIC_CHARS].rstrip()}…"


def _next_step(request: ChatRequest) -> _Say:
    done, tools = _done(request), request.tool_names
    if not done:
        if "read_file" not in tools:
            return _Say(f"{_WHO}\n\nI would change the page's heading, but no tool to read files is offered to me.")
        return _read(next(iter(_PAGES)), f"{_WHO}\n\nI begin by reading the page.")
    steps = {
        "read_file": _after_read,
        "submit_plan": _after_plan,
        "edit_file": _after_edit,
        "run_command": _after_run,
    }
    step = steps.get(done[-1].name)
    return step(done, tools) if step else _end("I stop here: the last call wasn't one of mine.")


def _done(request: ChatRequest) -> list[_Done]:
    since = request.messages[request.newest_user_message() + 1 :]
    results = {message.tool_call_id: message.text for message in since if message.role == "tool"}
    return [
        _Done(call.function.name, _object(call.function.arguments), results.get(call.id, ""))
        for message in since
        for call in message.calls
    ]


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _after_read(done: list[_Done], tools: set[str]) -> _Say:
    read = done[-1]
    lines = _NUMBERED_LINE.findall(read.result)
    if not lines:
        pages = list(_PAGES)
        others = pages[pages.index(read.path) + 1 :] if read.path in pages else []
        if others:
            return _read(others[0], f"`{read.path}` can't be read here. I look at `{others[0]}`.")
        return _end("I found no page whose heading I could change.")
    heading = _HEADING.search("\n".join(lines))
    if heading is None:
        return _end(f"`{read.path}` has no plain heading that I could change, so I leave it as it is.")
    new = _new_heading(heading[2])
    if "edit_file" not in tools:
        plan = (
            f"Change the heading of `{read.path}`, “{heading[2].strip()}”, to “{new}”, and check it with "
            f"`{_PAGES.get(read.path, 'a look')}`."
        )
        if "submit_plan" in tools:
            return _Say("I know what to do, and ask for leave.", "submit_plan", {"plan": plan})
        return _end(f"My plan: {plan} No tool to edit files is offered to me yet.")
    return _Say(
        f"The heading says “{heading[2].strip()}”. I change it, so that you see the page follow.",
        "edit_file",
        {"path": read.path, "edits": [{"search": heading[0], "replace": f"{heading[1]}{new}</h1>"}]},
    )


def _after_plan(done: list[_Done], tools: set[str]) -> _Say:
    reads = [each for each in done if each.name == "read_file"]
    allowed = not done[-1].result.startswith(_DENIED)
    if not allowed or "edit_file" not in tools or not reads:
        return _end(f"My plan wasn't allowed, so I change nothing: {_shown(done[-1].result)}")
    return _after_read(reads, tools)


def _new_heading(old: str) -> str:
    """The one after the old one, so that every task changes something."""
    position = _HEADINGS.index(old) if old in _HEADINGS else -1
    return _HEADINGS[(position + 1) % len(_HEADINGS)]


def _after_edit(done: list[_Done], tools: set[str]) -> _Say:
    edit = done[-1]
    if not edit.result.startswith(_EDITED):
        tries = sum(each.name == "edit_file" for each in done)
        if tries < _EDITS and "read_file" in tools and not edit.result.startswith(_DENIED):
            return _read(edit.path, "That edit wasn't taken. I read the file again, it may have changed.")
        return _end(f"My edit of `{edit.path}` wasn't taken: {_shown(edit.result)}")
    command = _PAGES.get(edit.path)
    if command is None or "run_command" not in tools:
        return _end(f"I changed the heading in `{edit.path}`. No tool to check it is offered to me.")
    return _Say(f"Done. I check it with `{command}`.", "run_command", {"command": command, "timeout_s": 120})


def _after_run(done: list[_Done], _tools: set[str]) -> _Say:
    edit = next((each for each in reversed(done) if each.name == "edit_file"), None)
    changed = f"I changed the heading in `{edit.path}`: the preview shows it already. " if edit else ""
    run = done[-1]
    how, _, output = run.result.strip().partition("\n")
    end = f"\n\n```\n{_shown(output)}\n```" if output.strip() else ""
    return _end(f"{changed}`{run.arguments.get('command', '')}`: {how or 'nothing came back'}.{end}")


def _shown(result: str) -> str:
    """The end of a tool's result, where a command's own end stands."""
    text = result.strip()
    if not text:
        return "nothing came back."
    return text if len(text) <= _SHOWN_CHARS else f"…{text[-_SHOWN_CHARS:]}"


def _read(path: str, text: str) -> _Say:
    return _Say(text, "read_file", {"path": path})


def _end(text: str) -> _Say:
    return _Say(f"{text}\n\nAll of this was scripted: I am the demo model. {_CONNECT}")
