"""A task's events as the parts of one assistant message of the AI SDK. The message's id is the task's."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from api.ui_messages.text import Part, StepText
from storage.agent_tasks import TaskRecord
from storage.chats import ASSISTANT
from storage.task_views import parsed
from workflows.contracts.agent_tasks import FINAL_STATES, CallState, PauseReason, TaskState
from workflows.contracts.events import Event, EventType

_UNREADABLE: Final = "The call could not be read."


@dataclass(frozen=True)
class Past:
    """What there was when the stream was opened: the log up to number `upto`, and what each step had said by then.

    A stream that is opened late is told texts as they are, not what has been dropped of them.
    """

    upto: int = 0
    texts: Mapping[int, str] = field(default_factory=dict)


class MessageParts:
    """Turns a task's events, all of them and in order, into parts. `past`: see there.

    A call is shown once it begins, has ended or is asked for; the rest of a step that asks for some is held back, so
    that at the end of a stream that waits for its user, each call that is shown is one that they can answer.
    """

    def __init__(self, task: TaskRecord, past: Past) -> None:
        self._task_id = str(task.id)
        self._past = past
        self._step = 0
        self._text = StepText(0)
        self._calls: dict[str, Part] = {}
        self._shown: set[str] = set()
        self._approvals: dict[str, Part] = {}

    def begin(self) -> Part:
        """The first part of every stream."""
        return {"type": "start", "messageId": self._task_id}

    def of(self, event: Event) -> Iterator[Part]:
        """What the event adds to the message."""
        data = event.data
        match event.type:
            case EventType.TASK_STATE:
                yield from self._state(data)
            case EventType.STEP_STARTED | EventType.STEP_RESET | EventType.TEXT_DELTA:
                yield from self._said(event)
            case EventType.MESSAGE_FINAL if data.get("role") == ASSISTANT:
                yield from self._enter(data["step"])
                yield from self._text.end(data["content"])
            case EventType.APPROVAL_REQUESTED:
                yield from self._asked(data)
            case EventType.APPROVAL_RESOLVED:
                yield from self._answered(data)
            case EventType.TOOL_CALL:
                yield from self._call(data)
            case EventType.TOOL_RESULT:
                yield from self._result(data)

    def pause(self) -> Iterator[Part]:
        """The stream ends here until the user has answered what is asked."""
        yield from self._leave()
        yield {"type": "finish", "finishReason": "tool-calls"}

    @property
    def step(self) -> int:
        """The number of the newest step."""
        return self._step

    @property
    def asked(self) -> frozenset[str]:
        """The approvals that were asked for so far, answered or not."""
        return frozenset(self._approvals)

    # --- text and steps ---

    def _said(self, event: Event) -> Iterator[Part]:
        yield from self._enter(event.data["step"])
        if event.seq <= self._past.upto:
            return  # its text was known when the step was entered
        if event.type == EventType.STEP_RESET:
            self._text.begin_anew()
        elif event.type == EventType.TEXT_DELTA:
            yield from self._text.add(event.data["text"])

    def _enter(self, step: int) -> Iterator[Part]:
        if step == self._step:
            return
        yield from self._leave()
        self._step, self._text = step, StepText(step)
        yield {"type": "start-step"}
        yield from self._text.add(self._past.texts.get(step, ""))

    def _leave(self) -> Iterator[Part]:
        if self._step:
            yield from self._text.end()
            yield {"type": "finish-step"}

    # --- calls ---

    def _call(self, data: dict[str, Any]) -> Iterator[Part]:
        yield from self._enter(data["step"])
        yield from self._text.end()
        call, state = data["call"], data["state"]
        self._calls[call] = {
            "type": "tool-input-available",
            "toolCallId": call,
            "toolName": data["name"],
            "input": parsed(data["arguments"]),
            "dynamic": True,
            "providerExecuted": True,
        }
        asking = [asked["id"] for asked in self._approvals.values() if asked["data"]["step"] == data["step"]]
        if state == CallState.PENDING and asking and call not in self._shown:
            return
        yield self._show(call)
        if state == CallState.AWAITING_APPROVAL:
            own = [name for name in asking if self._approvals[name]["data"]["toolCallId"] in {call, None}]
            yield from ({"type": "tool-approval-request", "approvalId": name, "toolCallId": call} for name in own[:1])
        elif state == CallState.FAILED:
            yield _output("error", call, errorText=_UNREADABLE)

    def _show(self, call: str) -> Part:
        self._shown.add(call)
        return self._calls[call]

    def _result(self, data: dict[str, Any]) -> Iterator[Part]:
        call, state, result = data["call"], data["state"], data["result"]
        if call not in self._calls:
            return
        if call not in self._shown:
            yield self._show(call)
        if state == CallState.COMPLETED:
            yield _output("available", call, output={"result": result, "exit_code": data["exit_code"]})
        elif state == CallState.DENIED:
            yield {"type": "tool-output-denied", "toolCallId": call}
        else:
            yield _output("error", call, errorText=result)

    # --- approvals ---

    def _asked(self, data: dict[str, Any]) -> Iterator[Part]:
        name = data["approval_id"]
        told = {
            "approvalId": name,
            "taskId": self._task_id,
            "kind": data["kind"],
            "step": data["step"],
            "toolCallId": data["call"],
            "toolName": data["name"],
            "input": parsed(data["arguments"]),
            "expiresAt": data["expires_at"],
            "state": "pending",
            "decision": None,
        }
        self._approvals[name] = {"type": "data-approval", "id": name, "data": told}
        yield from self._enter(data["step"])
        yield from self._text.end()
        yield self._approvals[name]

    def _answered(self, data: dict[str, Any]) -> Iterator[Part]:
        asked = self._approvals.get(data["approval_id"])
        if asked is not None:
            now = asked["data"] | {"state": data["state"], "decision": data["decision"]}
            self._approvals[data["approval_id"]] = asked | {"data": now}
            yield self._approvals[data["approval_id"]]

    # --- the task ---

    def _state(self, data: dict[str, Any]) -> Iterator[Part]:
        told = {name: data.get(name) for name in ("state", "reason", "detail", "mode")}
        yield {"type": "data-task", "id": self._task_id, "data": {"id": self._task_id, **told}}
        match data["state"]:
            case TaskState.COMPLETED:
                yield from self._leave()
                yield {"type": "finish", "finishReason": "stop"}
            case TaskState.CANCELLED:
                yield from self._leave()
                yield {"type": "abort", "reason": data.get("reason") or TaskState.CANCELLED.value}
            case TaskState.FAILED:
                yield from self._leave()
                yield {"type": "error", "errorText": data.get("detail") or data.get("reason") or "The task failed."}


def _output(kind: str, call: str, **more: Any) -> Part:  # noqa: ANN401 -- JSON of any shape
    return {"type": f"tool-output-{kind}", "toolCallId": call, "dynamic": True, **more}


def ends_message(event: Event) -> bool:
    """Whether nothing of the task follows."""
    return event.type == EventType.TASK_STATE and event.data["state"] in FINAL_STATES


def asks_user(event: Event) -> bool:
    """Whether the task waits for answers to its approvals from here on. A bound to be raised is waited for as is."""
    return event.type == EventType.TASK_STATE and event.data["reason"] == PauseReason.APPROVAL
