"""The demo model's task, against tools that answer as the agent's do, and against some that don't."""

import itertools
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.workers.stacks import ROOT
from workers.scripted_model.answer import Answer
from workers.scripted_model.conversation import ChatRequest
from workers.scripted_model.demo import answer_demo

PAGE = (ROOT / "templates/vite-react/files/src/App.jsx").read_text()
ALL = ("read_file", "edit_file", "write_file", "run_command")


class Project:
    """A folder, and the agent's tools on it."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files = files
        self.commands: list[str] = []

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        tools: dict[str, Callable[..., str]] = {
            "read_file": self.read_file,
            "edit_file": self.edit_file,
            "run_command": self.run_command,
        }
        return tools[name](**arguments)

    def read_file(self, path: str) -> str:
        if path not in self.files:
            return f"Error: there is no file `{path}`."
        lines = self.files[path].splitlines()
        head = f"[{path}: lines 1 to {len(lines)} of {len(lines)}]\n"
        return head + "\n".join(f"{number:6}\t{line}" for number, line in enumerate(lines, 1))

    def edit_file(self, path: str, edits: list[dict[str, str]]) -> str:
        for edit in edits:
            assert self.files[path].count(edit["search"]) == 1
            self.files[path] = self.files[path].replace(edit["search"], edit["replace"])
        return f"Edited {path}:\n-<h1>not found</h1>"

    def run_command(self, command: str, timeout_s: int) -> str:
        self.commands.append(command)
        return "exit code 0\n✓ built in 321ms"

    @property
    def heading(self) -> str:
        page = self.files.get("src/App.jsx") or self.files["index.html"]
        found = re.search("<h1>(.*)</h1>", page)
        assert found
        return found[1]


class ProjectOfAHumanToo(Project):
    """Somebody else edits the page after it was first read."""

    def edit_file(self, path: str, edits: list[dict[str, str]]) -> str:
        if "Mine" not in self.files[path]:
            self.files[path] = self.files[path].replace("Your app is live", "Mine")
            return f"{path!r} has changed since you read it; nothing was written. Read it again."
        return super().edit_file(path, edits)


class ProjectOfDenials(Project):
    """Whoever is asked for approval says no."""

    def edit_file(self, path: str, edits: list[dict[str, str]]) -> str:
        return "Not done. The user did not allow it."


class ProjectOfRefusals(Project):
    """An edit never fits."""

    def edit_file(self, path: str, edits: list[dict[str, str]]) -> str:
        return "Edit 1 of 1 can't be done, nothing was written: its search text is not in the file."


def ask(messages: list[dict[str, Any]], tools: tuple[str, ...]) -> Answer:
    offered = [{"type": "function", "function": {"name": name}} for name in tools]
    return answer_demo(ChatRequest.model_validate({"model": "demo", "messages": messages, "tools": offered}))


def play(project: Project, messages: list[dict[str, Any]], tools: tuple[str, ...] = ALL) -> list[Answer]:
    """The agent's loop, with a bound."""
    answers: list[Answer] = []
    while not answers or answers[-1].calls:
        answers.append(ask(messages, tools))
        assert len(answers) < 10
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in answers[-1].calls
        ]
        messages.append({"role": "assistant", "content": answers[-1].text, "tool_calls": calls or None})
        for call in answers[-1].calls:
            result = project.call(call.name, json.loads(call.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    return answers


def task(text: str = "Make it nicer") -> list[dict[str, Any]]:
    return [{"role": "system", "content": "You are an agent."}, {"role": "user", "content": text}]


def names(answers: list[Answer]) -> list[str]:
    return [call.name for answer in answers for call in answer.calls]


def test_reads_edits_builds_and_sums_up() -> None:
    project = Project({"src/App.jsx": PAGE})
    answers = play(project, task())
    assert names(answers) == ["read_file", "edit_file", "run_command"]
    assert project.heading == "Hello from the scripted demo model"
    assert project.files["src/App.jsx"].replace(project.heading, "Your app is live") == PAGE
    assert project.commands == ["npm run build"]
    for said in (answers[0].text, answers[-1].text):
        assert "scripted" in said
        assert "OPENAI_API_BASE" in said
        assert "LITELLM_API_BASE" in said
    assert "`npm run build`: exit code 0." in answers[-1].text
    assert "built in 321ms" in answers[-1].text


def test_a_second_task_changes_the_page_again() -> None:
    project, messages = Project({"src/App.jsx": PAGE}), task()
    headings = [project.heading]
    for _ in range(4):
        play(project, messages)
        headings.append(project.heading)
        messages.append({"role": "user", "content": "Once more"})
    assert all(before != after for before, after in itertools.pairwise(headings))


def test_reads_again_when_a_human_was_faster() -> None:
    project = ProjectOfAHumanToo({"src/App.jsx": PAGE})
    assert names(play(project, task())) == ["read_file", "edit_file", "read_file", "edit_file", "run_command"]
    assert project.heading == "Hello from the scripted demo model"


def test_takes_a_no_for_an_answer() -> None:
    answers = play(ProjectOfDenials({"src/App.jsx": PAGE}), task())
    assert names(answers) == ["read_file", "edit_file"]
    assert "The user did not allow it." in answers[-1].text


def test_tries_an_edit_twice_at_most() -> None:
    answers = play(ProjectOfRefusals({"src/App.jsx": PAGE}), task())
    assert names(answers) == ["read_file", "edit_file", "read_file", "edit_file"]
    assert "is not in the file" in answers[-1].text


def test_plans_where_it_may_only_look_and_does_what_was_allowed() -> None:
    project, messages = Project({"src/App.jsx": PAGE}), task()
    looking = ("read_file", "submit_plan")
    for answer in ("read_file", "submit_plan"):
        call = ask(messages, looking).calls[0]
        assert call.name == answer
        asked = {"id": call.id, "function": {"name": call.name, "arguments": call.arguments}}
        result = project.read_file("src/App.jsx") if answer == "read_file" else "Your plan is allowed. Carry it out."
        messages.append({"role": "assistant", "content": "", "tool_calls": [asked]})
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    denied = [*messages[:-1], {**messages[-1], "content": "Not done. The user did not allow it."}]
    assert not ask(denied, looking).calls
    assert names(play(project, messages)) == ["edit_file", "run_command"]
    assert project.heading == "Hello from the scripted demo model"


def test_looks_for_another_templates_page() -> None:
    project = Project({"index.html": (ROOT / "templates/static/files/index.html").read_text()})
    assert names(play(project, task())) == ["read_file", "read_file", "edit_file", "run_command"]
    assert project.heading == "Hello from the scripted demo model"


@pytest.mark.parametrize(
    ("tools", "called", "said"),
    [
        (("list_files",), [], "no tool to read files"),
        (("read_file", "search"), ["read_file"], "My plan"),
        (("read_file", "edit_file"), ["read_file", "edit_file"], "No tool to check it"),
    ],
)
def test_copes_without_tools(tools: tuple[str, ...], called: list[str], said: str) -> None:
    answers = play(Project({"src/App.jsx": PAGE}), task(), tools)
    assert names(answers) == called
    assert said in answers[-1].text


@pytest.mark.parametrize("files", [{}, {"src/App.jsx": "export default () => <h1>{title}</h1>\n"}])
def test_leaves_a_page_that_it_does_not_understand(files: dict[str, str]) -> None:
    answers = play(Project(dict(files)), task())
    assert set(names(answers)) == {"read_file"}
    assert "scripted" in answers[-1].text


def test_a_call_of_somebody_else_ends_it() -> None:
    call = {"id": "c1", "function": {"name": "fetch_url", "arguments": "not JSON"}}
    messages = [*task(), {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert not ask(messages, ALL).calls


def test_chats_in_pieces_and_names_the_topic() -> None:
    answer = ask(task("How do  I make\nthe page blue?"), ())
    assert "“How do I make the page blue?”" in answer.text
    assert "scripted demo model" in answer.text
    assert "OPENAI_API_BASE" in answer.text
    assert len(answer.pieces) > 30
    assert len(ask(task("word " * 500), ()).text) < 1000
