"""A task's events as parts of the AI SDK's message, without any server: what becomes of a text that is said anew."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ui_messages.parts import MessageParts, Past
from api.ui_messages.text import Part, StepText
from storage.agent_tasks import TaskRecord
from workflows.contracts.events import Event, EventType


class NamedTask:
    """As much of a task as a message wants."""

    id = "the-task"


def parts_of(*told: tuple[EventType, dict[str, Any]], past: Past | None = None) -> list[Part]:
    writer = MessageParts(cast("TaskRecord", NamedTask()), past or Past())
    events = [
        Event(seq=n, type=kind, project_id=1, task_id="the-task", at=datetime.now(UTC), data=data)
        for n, (kind, data) in enumerate(told, start=1)
    ]
    return [part for event in events for part in writer.of(event)]


def shown(parts: Iterable[Part]) -> list[str]:
    """The texts that stand, as the SDK's reducer would have them; what it would refuse fails here."""
    texts: list[str] = []
    active: dict[str, int] = {}
    step = 0
    for part in parts:
        match part["type"]:
            case "start-step":
                step = len(texts)
            case "reset-step":
                active.clear()
                del texts[step:]
            case "text-start":
                active[part["id"]] = len(texts)
                texts.append("")
            case "text-delta":
                assert part["delta"]
                texts[active[part["id"]]] += part["delta"]
            case "text-end":
                del active[part["id"]]
    assert not active
    return texts


@given(st.lists(st.lists(st.text("ab", max_size=3), max_size=6), min_size=1, max_size=5), st.booleans())
def test_whatever_attempts_say_the_last_one_stands(attempts: list[list[str]], told_whole: bool) -> None:
    text = StepText(1)
    parts: list[Part] = []
    for number, pieces in enumerate(attempts):
        if number:
            text.begin_anew()
        for piece in pieces:
            parts += text.add(piece)
    whole = "".join(attempts[-1])
    parts += text.end(whole if told_whole else None)
    assert shown(parts) == ([whole] if whole else [])


def test_an_attempt_that_says_the_same_again_shows_nothing_twice() -> None:
    text = StepText(1)
    parts = [*text.add("Hello, "), *text.add("wor")]
    text.begin_anew()
    again = [list(text.add(piece)) for piece in ("Hel", "lo, w", "orl", "d.")]
    assert again[:2] == [[], []]
    parts += [part for more in again for part in more] + [*text.end()]
    assert [part["type"] for part in parts] == ["text-start", *["text-delta"] * 4, "text-end"]
    assert shown(parts) == ["Hello, world."]


def test_an_attempt_that_says_something_else_takes_back_what_is_shown() -> None:
    text = StepText(3)
    parts = [*text.add("Hello")]
    text.begin_anew()
    parts += [*text.add("Good morning"), *text.end()]
    assert [part["type"] for part in parts][2:4] == ["reset-step", "text-start"]
    assert shown(parts) == ["Good morning"]


@pytest.mark.parametrize(
    ("whole", "standing"), [("", []), ("Hell", ["Hell"]), ("Hello", ["Hello"]), ("Hello!", ["Hello!"])]
)
def test_the_stored_text_has_the_last_word(whole: str, standing: list[str]) -> None:
    delta = (EventType.TEXT_DELTA, {"step": 1, "text": "Hello"})
    final = (EventType.MESSAGE_FINAL, {"role": "assistant", "step": 1, "content": whole})
    assert shown(parts_of((EventType.STEP_STARTED, {"step": 1}), delta, final)) == standing


def test_a_late_reader_is_told_texts_as_they_are_and_the_rest_as_it_comes() -> None:
    told: list[tuple[EventType, dict[str, Any]]] = [
        (EventType.STEP_STARTED, {"step": 1}),
        (EventType.TEXT_DELTA, {"step": 1, "text": "No, "}),
        (EventType.STEP_RESET, {"step": 1}),
        (EventType.TEXT_DELTA, {"step": 1, "text": "Yes"}),
        (EventType.TEXT_DELTA, {"step": 1, "text": ", so"}),
        (EventType.TASK_STATE, {"state": "completed", "reason": None}),
    ]
    live, late = parts_of(*told), parts_of(*told, past=Past(4, {1: "Yes"}))
    assert shown(live) == shown(late) == ["Yes, so"]
    assert "reset-step" in [part["type"] for part in live]
    assert [part.get("delta") for part in late if part["type"].startswith("text")] == [None, "Yes", ", so", None]


def test_a_call_that_waits_for_anothers_answer_is_shown_once_it_begins() -> None:
    def call(name: str, state: str) -> tuple[EventType, dict[str, Any]]:
        return EventType.TOOL_CALL, {"step": 1, "call": name, "name": name, "arguments": "{}", "state": state}

    asked = {"approval_id": "a", "kind": "tool", "step": 1, "call": "write", "name": "write", "arguments": "{}"}
    result = {"step": 1, "call": "look", "name": "look", "state": "cancelled", "result": "Too late.", "exit_code": None}
    parts = parts_of(
        (EventType.STEP_STARTED, {"step": 1}),
        (EventType.APPROVAL_REQUESTED, asked | {"expires_at": "2030-01-01T00:00:00Z"}),
        call("write", "awaiting_approval"),
        call("look", "pending"),
        (EventType.TASK_STATE, {"state": "awaiting_approval", "reason": "approval"}),
        (EventType.TOOL_RESULT, result),
    )
    assert [(part["type"], part.get("toolCallId")) for part in parts] == [
        ("start-step", None),
        ("data-approval", None),
        ("tool-input-available", "write"),
        ("tool-approval-request", "write"),
        ("data-task", None),
        ("tool-input-available", "look"),
        ("tool-output-error", "look"),
    ]


def test_a_call_that_could_not_be_read_has_ended_at_once() -> None:
    call = {"step": 1, "call": "x", "name": "invalid_tool_call", "arguments": "{", "state": "failed"}
    *_, given_, ended = parts_of((EventType.TOOL_CALL, call))
    assert (given_["input"], ended["type"]) == ("{", "tool-output-error")
