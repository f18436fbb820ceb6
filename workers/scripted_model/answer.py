"""What a model is about to say: an answer with its pace and, where a script wants it, the way in which it breaks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class BreakKind(StrEnum):
    """How an answer goes wrong in its middle."""

    DROP = "drop"
    """The connection is cut."""
    ERROR = "error"
    """An error event and a regular end of the body, as a proxy does it: status 200, no `[DONE]`."""
    HANG = "hang"
    """Silence until the client goes."""
    NO_DONE = "no_done"
    """All is there but the `[DONE]`."""


@dataclass(frozen=True)
class Break:
    """`after`: how many pieces (of text and of calls, counted together) are played first. `body`: of an error."""

    kind: BreakKind
    after: int = 0
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Call:
    """A tool call; `arguments` is the text that is sent, right JSON or not."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Usage:
    """Tokens of a call."""

    input: int
    output: int


@dataclass(frozen=True)
class Answer:
    """What is said. `key`: what it is counted under. `pieces_per_s` 0: all at once. Times are seconds."""

    key: str
    usage: Usage
    pieces: Sequence[str] = ()
    calls: Sequence[Call] = ()
    pieces_per_s: float = 50.0
    first_delay_s: float = 0.0
    finish_reason: str = "stop"
    breaks: Break | None = None

    @property
    def text(self) -> str:
        """All pieces."""
        return "".join(self.pieces)


@dataclass(frozen=True)
class Refusal:
    """An error in place of an answer, `body` in OpenAI's shape."""

    key: str
    status: int
    body: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)
