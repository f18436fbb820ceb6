"""A step's text on its way to those who watch."""

import asyncio
from typing import Final

from storage.event_batcher import EventBatcher
from workflows.contracts.agent_tasks import TaskStepInput
from workflows.contracts.events import EventFence, EventType, NewEvent

_ON_THEIR_WAY: Final = 64
"""Pieces of one step that may wait for their commit at a time; those that meet in a batch become one event there."""


class TextTeller:
    """Tells text in order, as `text.delta` events; what comes while many are on their way joins the next one."""

    def __init__(self, batcher: EventBatcher, step: TaskStepInput, fence: EventFence) -> None:
        self._batcher = batcher
        self._step = step
        self._fence = fence
        self._pending = ""
        self._sending: set[asyncio.Future[None]] = set()
        self._failure: BaseException | None = None
        self._said: list[str] = []

    @property
    def text(self) -> str:
        """All that was added."""
        return "".join(self._said)

    def add(self, text: str) -> None:
        """Tell more. Raises what went wrong with an earlier piece: `FencedOffError`, `UnavailableError`."""
        if self._failure is not None:
            raise self._failure
        self._said.append(text)
        self._pending += text
        self._send()

    async def flush(self) -> None:
        """Return when all of it is committed. Raises as `add` does."""
        while self._sending:
            await asyncio.wait(self._sending)
            await asyncio.sleep(0)  # the callbacks of what has just been sent, which send what has joined meanwhile
        if self._failure is not None:
            raise self._failure

    def _send(self) -> None:
        if not self._pending or len(self._sending) >= _ON_THEIR_WAY:
            return
        text, self._pending = self._pending, ""
        event = NewEvent(
            project_id=self._step.project_id,
            type=EventType.TEXT_DELTA,
            task_id=self._step.task_id,
            data={"step": self._step.step, "text": text},
            fence=self._fence,
        )
        sending = self._batcher.send(event)
        self._sending.add(sending)
        sending.add_done_callback(self._sent)

    def _sent(self, sending: "asyncio.Future[None]") -> None:
        self._sending.discard(sending)
        error = None if sending.cancelled() else sending.exception()
        if error is not None:
            self._failure = self._failure or error
        elif self._failure is None:
            self._send()
