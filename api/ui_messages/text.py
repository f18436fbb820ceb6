"""A step's text on its way into a message that is added to, and from which only a whole step can be taken back."""

from collections.abc import Iterator
from typing import Any

Part = dict[str, Any]
"""A part of the stream, as JSON: `{type, …}`."""


class StepText:
    """Follows what a step says with parts of the stream.

    When a model call is made again, what is shown already stands as long as the model says the same again. Where it
    says something else, the step's parts are taken back, and a new one has the whole text of the new attempt. Clients
    older than version 7 can't take back: to them it is an error, which resuming the stream heals.
    """

    def __init__(self, step: int) -> None:
        self._step = step
        self._number = 0
        self._shown = ""
        self._wanted = ""
        self._over = False

    def add(self, text: str) -> Iterator[Part]:
        """The model says more."""
        self._wanted += text
        if not self._over and not self._shown.startswith(self._wanted):
            yield from self._show()

    def begin_anew(self) -> None:
        """The model is asked again: what it has said so far doesn't count."""
        self._wanted = ""

    def end(self, whole: str | None = None) -> Iterator[Part]:
        """The text is whole; `whole` is it, where it is known better than from its pieces. A second end is none."""
        if self._over:
            return
        self._over = True
        self._wanted = self._wanted if whole is None else whole
        yield from self._show()
        if self._shown:
            yield {"type": "text-end", "id": self._id}

    @property
    def _id(self) -> str:
        return f"text-{self._step}-{self._number}"

    def _show(self) -> Iterator[Part]:
        if not self._wanted.startswith(self._shown):
            yield {"type": "reset-step"}
            self._shown = ""
            self._number += 1
        if self._wanted and not self._shown:
            yield {"type": "text-start", "id": self._id}
        if more := self._wanted[len(self._shown) :]:
            yield {"type": "text-delta", "id": self._id, "delta": more}
        self._shown = self._wanted
