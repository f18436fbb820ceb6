"""A step's text on its way into a message that can only be added to."""

from collections.abc import Iterator
from typing import Any, Final

Part = dict[str, Any]
"""A part of the stream, as JSON: `{type, …}`."""
DISCARDED: Final = {"studio": {"discarded": True}}
"""`providerMetadata` of a text part that is void: its model call broke off, and what came of the retry stands after."""


class StepText:
    """Follows what a step says with parts of the stream.

    Nothing can be taken back in this protocol. When a model call is made again, what is shown already stands as long
    as the model says the same again; from where it says something else, the shown part is ended as `DISCARDED`, and
    one with the whole text of the new attempt begins.
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
            yield {"type": "text-end", "id": self._id, "providerMetadata": DISCARDED}
            yield {"type": "data-reset", "id": f"reset-{self._step}-{self._number}", "data": {"step": self._step}}
            self._shown = ""
            self._number += 1
        if self._wanted and not self._shown:
            yield {"type": "text-start", "id": self._id}
        if more := self._wanted[len(self._shown) :]:
            yield {"type": "text-delta", "id": self._id, "delta": more}
        self._shown = self._wanted
