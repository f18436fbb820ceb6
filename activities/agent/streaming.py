"""A step's text on its way to those who watch."""

import asyncio

from storage.event_batcher import EventBatcher, Line
from workflows.contracts.agent_tasks import TaskStepInput
from workflows.contracts.events import EventFence, EventType, NewEvent


class TextTeller:
    """Tells text in order, as `text.delta` events: what comes while one waits for its batch joins it."""

    def __init__(self, batcher: EventBatcher, step: TaskStepInput, fence: EventFence) -> None:
        self._batcher = batcher
        self._step = step
        self._fence = fence
        self._line: Line | None = None
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
        if self._line is None or not self._line.join(text):
            self._line = self._send(text)

    async def flush(self) -> None:
        """Return when all of it is committed. Raises as `add` does."""
        if self._sending:
            await asyncio.wait(self._sending)
        if self._failure is not None:
            raise self._failure

    def _send(self, text: str) -> Line:
        event = NewEvent(
            project_id=self._step.project_id,
            type=EventType.TEXT_DELTA,
            task_id=self._step.task_id,
            data={"step": self._step.step, "text": text},
            fence=self._fence,
        )
        line = self._batcher.send(event)
        self._sending.add(line.done)
        line.done.add_done_callback(self._sent)
        return line

    def _sent(self, sending: "asyncio.Future[None]") -> None:
        self._sending.discard(sending)
        error = None if sending.cancelled() else sending.exception()
        self._failure = self._failure or error
