"""What the steps of a task are made of: answers, tool calls, and what was said before and meanwhile.

Whoever writes here holds the locks of project and task, in that order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Select, bindparam, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from storage import event_log
from storage.chats import MessageRecord
from storage.event_log import storable
from storage.tables import Message, TaskStep, TaskSummary, ToolCall, ToolImage
from workflows.contracts.agent_tasks import CallState
from workflows.contracts.events import EventType, NewEvent

_PAST_MESSAGES: Final = 200
"""Of a chat, those before the prompt that a model is told of at most; its compaction begins long before."""
_IMAGES: Final = 4
_SHOWN_RESULT: Final = 4000
_RESULT_LIMIT: Final = 100_000
"""Characters of a tool's answer that are kept. Tools bound themselves lower; this holds for those that forget to."""

# What watchers have seen of a step is what it is worth when it is never finished.
_TOLD_TEXT: Final = text("""
SELECT coalesce(string_agg(data->>'text', '' ORDER BY seq), '') FROM events
WHERE task_id = :task_id AND type = 'text.delta' AND CAST(data->>'step' AS int) = :n AND seq > coalesce((
    SELECT max(seq) FROM events WHERE task_id = :task_id AND type = 'step.reset' AND CAST(data->>'step' AS int) = :n
), 0)
""")
_TOLD_OUTPUT: Final = text("""
SELECT coalesce(max(CAST(data->>'end' AS bigint)), 0) FROM events
WHERE task_id = :task_id AND type = 'tool.output' AND data->>'call' = :call_id
""")


_BEGIN_CALL: Final = text("UPDATE tool_calls SET state = 'running', started_at = clock_timestamp() WHERE id = :call_id")
_END_CALL: Final = text("""
UPDATE tool_calls SET state = :state, result = :result, exit_code = CAST(:exit_code AS bigint),
    ended_at = clock_timestamp()
WHERE id = :call_id
""")


@dataclass(frozen=True)
class StepRecord:
    """A model's answer as stored."""

    n: int
    text: str
    finish_reason: str


@dataclass(frozen=True)
class CallRecord:
    """A tool call as stored; see `storage.tables.ToolCall`."""

    id: str
    step: int
    position: int
    wave: int
    name: str
    arguments: str
    state: str
    result: str | None
    exit_code: int | None
    intent: dict[str, Any] | None
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def ended(self) -> bool:
        """Whether it has its answer."""
        return self.state in ENDED_CALLS


ENDED_CALLS: Final = frozenset({CallState.COMPLETED, CallState.FAILED, CallState.DENIED, CallState.CANCELLED})


@dataclass(frozen=True)
class NewCall:
    """A call that a model has just made. `result` only where it is answered already: it could not even be read."""

    id: str
    name: str
    arguments: str
    wave: int
    state: CallState
    result: str | None = None


@dataclass(frozen=True)
class Summary:
    """What stands in place of everything up to and with step `upto`; 0: of the chat's past alone."""

    upto: int
    text: str


@dataclass(frozen=True)
class Transcript:
    """All that a model is told of a task: the chat before it, what its user said since, steps, calls, and a summary.

    `images`: for a model that sees them, those that the last step's calls have answered with; older ones have had
    their turn.
    """

    past: list[MessageRecord]
    said: list[MessageRecord]
    steps: list[StepRecord]
    calls: list[CallRecord]
    summary: Summary | None
    images: list[bytes]


# Columns, not entities: a long task's transcript is read before each of its steps.
_CALL: Final = select(*(getattr(ToolCall, field.name) for field in fields(CallRecord)))
_MESSAGE: Final = select(*(getattr(Message, field.name) for field in fields(MessageRecord)))
_STEP: Final = select(TaskStep.n, TaskStep.text, TaskStep.finish_reason).where(TaskStep.task_id == bindparam("task_id"))

# Made once each: building a statement and its cache key costs more than running it.
_ONE_STEP: Final = _STEP.where(TaskStep.n == bindparam("n"))
_LATER_STEPS: Final = _STEP.where(TaskStep.n > bindparam("upto")).order_by(TaskStep.n)
_NEWEST_SUMMARY: Final = (
    select(TaskSummary.upto, TaskSummary.text)
    .where(TaskSummary.task_id == bindparam("task_id"))
    .order_by(TaskSummary.upto.desc())
    .limit(1)
)
_PAST: Final = (
    _MESSAGE.where(Message.chat_id == bindparam("chat_id"), Message.seq < bindparam("prompt_seq"))
    .order_by(Message.seq.desc())
    .limit(_PAST_MESSAGES)
)
# A prompt's message carries step 0; the rest is what was said while the task ran.
_SAID: Final = _MESSAGE.where(
    Message.task_id == bindparam("task_id"), Message.role == "user", Message.step > bindparam("upto")
).order_by(Message.seq)
_LATER_CALLS: Final = _CALL.where(ToolCall.task_id == bindparam("task_id"), ToolCall.step > bindparam("upto")).order_by(
    ToolCall.step, ToolCall.position
)
_CALLS_OF: Final = _CALL.where(ToolCall.task_id == bindparam("task_id"), ToolCall.step == bindparam("n")).order_by(
    ToolCall.position
)
_ONE_CALL: Final = _CALL.where(ToolCall.id == bindparam("call_id"), ToolCall.task_id == bindparam("task_id"))
_UNSEEN: Final = select(Message.id).where(
    Message.task_id == bindparam("task_id"), Message.role == "user", Message.step.is_(None)
)


async def _calls(session: AsyncSession, query: Select[*tuple[Any, ...]], **values: object) -> list[CallRecord]:
    return [CallRecord(*row) for row in await session.execute(query, values)]


async def transcript(
    session: AsyncSession, task_id: UUID, chat_id: UUID, prompt_seq: int, *, with_images: bool = False
) -> Transcript:
    """Everything that is stored, without what the newest summary stands for."""
    row = (await session.execute(_NEWEST_SUMMARY, {"task_id": task_id})).first()
    summary = None if row is None else Summary(*row)
    upto = 0 if summary is None else summary.upto
    past: list[MessageRecord] = []
    if summary is None:
        before = await session.execute(_PAST, {"chat_id": chat_id, "prompt_seq": prompt_seq})
        past = [MessageRecord(*found) for found in before]
    later = {"task_id": task_id, "upto": upto}
    done = [StepRecord(*found) for found in await session.execute(_LATER_STEPS, later)]
    called = await _calls(session, _LATER_CALLS, **later)
    last = [call.id for call in called if call.step == done[-1].n] if done and with_images else []
    pictures = select(ToolImage.data).where(ToolImage.call_id.in_(last)).order_by(ToolImage.call_id).limit(_IMAGES)
    return Transcript(
        past=past[::-1],
        said=[MessageRecord(*found) for found in await session.execute(_SAID, later)],
        steps=done,
        calls=called,
        summary=summary,
        images=list(await session.scalars(pictures)) if last else [],
    )


async def add_summary(session: AsyncSession, task_id: UUID, summary: Summary) -> None:
    """Keep a summary; one that is there for the same steps stays."""
    if await session.get(TaskSummary, (task_id, summary.upto)) is None:
        session.add(TaskSummary(task_id=task_id, upto=summary.upto, text=storable(summary.text)))
        await session.flush()


async def take_in_messages(session: AsyncSession, task_id: UUID, n: int) -> None:
    """What the user has written meanwhile is seen by step `n` first, at every attempt of it."""
    unseen = (await session.scalars(_UNSEEN, {"task_id": task_id})).all()
    if unseen:
        await session.execute(update(Message).where(Message.id.in_(unseen)).values(step=n))


async def has_unseen(session: AsyncSession, task_id: UUID) -> bool:
    """Whether the user has written something that no step has seen."""
    return (await session.execute(_UNSEEN, {"task_id": task_id})).first() is not None


# --- steps --------------------------------------------------------------------------------------------------------


async def find(session: AsyncSession, task_id: UUID, n: int) -> StepRecord | None:
    """The step's answer, or None while it has none."""
    row = (await session.execute(_ONE_STEP, {"task_id": task_id, "n": n})).first()
    return None if row is None else StepRecord(*row)


async def last(session: AsyncSession, task_id: UUID) -> int:
    """The number of the newest step that has its answer, 0 when there is none."""
    return await session.scalar(select(func.coalesce(func.max(TaskStep.n), 0)).where(TaskStep.task_id == task_id)) or 0


async def texts(session: AsyncSession, task_id: UUID) -> dict[int, str]:
    """The text of each step that has its answer."""
    rows = await session.execute(select(TaskStep.n, TaskStep.text).where(TaskStep.task_id == task_id))
    return {row.n: row.text for row in rows}


@dataclass(frozen=True)
class StepUsage:
    """What a step's model call used."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: Decimal = Decimal(0)


async def add(
    session: AsyncSession,
    task_id: UUID,
    step: StepRecord,
    calls: Sequence[NewCall] = (),
    usage: StepUsage = StepUsage(),
) -> None:
    """Store an answer with its calls."""
    session.add(
        TaskStep(
            task_id=task_id,
            n=step.n,
            text=storable(step.text),
            finish_reason=step.finish_reason,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost_usd=usage.cost_usd,
        )
    )
    for position, call in enumerate(calls):
        session.add(
            ToolCall(
                id=call.id,
                task_id=task_id,
                step=step.n,
                position=position,
                wave=call.wave,
                name=storable(call.name),
                arguments=storable(call.arguments),
                state=call.state,
                result=call.result,
            )
        )
    await session.flush()


async def told_text(session: AsyncSession, task_id: UUID, n: int) -> str:
    """What watchers have been told of a step's text since it last began anew."""
    return str(await session.scalar(_TOLD_TEXT, {"task_id": task_id, "n": n}))


# --- calls --------------------------------------------------------------------------------------------------------


async def calls_of(session: AsyncSession, task_id: UUID, n: int) -> list[CallRecord]:
    """The step's calls in the model's order."""
    return await _calls(session, _CALLS_OF, task_id=task_id, n=n)


async def open_calls(session: AsyncSession, task_id: UUID) -> list[CallRecord]:
    """The task's calls that have no answer yet."""
    return await _calls(session, _CALL.where(ToolCall.task_id == task_id, ToolCall.state.not_in(ENDED_CALLS)))


async def find_call(session: AsyncSession, task_id: UUID, call_id: str) -> CallRecord | None:
    """One call of the task, or None."""
    found = await _calls(session, _ONE_CALL, call_id=call_id, task_id=task_id)
    return found[0] if found else None


async def commands(session: AsyncSession, task_id: UUID, name: str) -> list[CallRecord]:
    """The task's begun calls of the tool that runs commands, those that may still have a process behind them."""
    query = _CALL.where(
        ToolCall.task_id == task_id,
        ToolCall.name == name,
        ToolCall.started_at.is_not(None),
        (ToolCall.state == CallState.RUNNING) | ToolCall.arguments.contains("background"),
    )
    return await _calls(session, query)


async def begin_call(session: AsyncSession, project_id: int, call: CallRecord, task_id: UUID) -> None:
    """The call runs from now on, if it doesn't yet."""
    if call.state != CallState.RUNNING:
        await session.execute(_BEGIN_CALL, {"call_id": call.id})
        event_log.append(session, [call_event(project_id, task_id, call, CallState.RUNNING)])


async def set_call_state(session: AsyncSession, call_id: str, state: CallState) -> None:
    """Change the state alone."""
    await _change_call(session, call_id, state=state)


async def end_call(
    session: AsyncSession,
    project_id: int,
    task_id: UUID,
    call: CallRecord,
    *,
    state: CallState,
    result: str,
    exit_code: int | None = None,
) -> None:
    """Store the answer, then tell it. The call must not have ended."""
    result = storable(result[:_RESULT_LIMIT])
    ending = {"call_id": call.id, "state": state, "result": result, "exit_code": exit_code}
    await session.execute(_END_CALL, ending)
    data = {
        "step": call.step,
        "call": call.id,
        "name": call.name,
        "state": state,
        "result": result[:_SHOWN_RESULT],
        "exit_code": exit_code,
    }
    event = NewEvent(project_id=project_id, type=EventType.TOOL_RESULT, task_id=str(task_id), data=data)
    event_log.append(session, [event])


async def add_image(session: AsyncSession, call_id: str, data: bytes) -> None:
    """Keep what the call has answered with, besides its text."""
    session.add(ToolImage(call_id=call_id, data=data))
    await session.flush()


async def image_of(session: AsyncSession, task_id: UUID, call_id: str) -> bytes | None:
    """The picture of one of the task's calls, or None."""
    query = select(ToolImage.data).join(ToolCall, ToolCall.id == ToolImage.call_id)
    return await session.scalar(query.where(ToolImage.call_id == call_id, ToolCall.task_id == task_id))


async def note_intent(session: AsyncSession, call_id: str, intent: dict[str, Any]) -> None:
    """What the call is about to do."""
    await _change_call(session, call_id, intent=intent)


async def told_output(session: AsyncSession, task_id: UUID, call_id: str) -> int:
    """How many bytes of the call's output watchers have been told."""
    return int(await session.scalar(_TOLD_OUTPUT, {"task_id": task_id, "call_id": call_id}) or 0)


async def _change_call(session: AsyncSession, call_id: str, **values: object) -> None:
    await session.execute(update(ToolCall).where(ToolCall.id == call_id).values(**values))


def call_event(project_id: int, task_id: UUID, call: CallRecord, state: str) -> NewEvent:
    """What watchers are told of a call and its state."""
    return NewEvent(
        project_id=project_id,
        type=EventType.TOOL_CALL,
        task_id=str(task_id),
        data={"step": call.step, "call": call.id, "name": call.name, "arguments": call.arguments, "state": state},
    )
