"""What a script may say: the JSON inside `<script>…</script>`. Unknown words in it are an error, so that a typo is."""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from workers.scripted_model.answer import Break, BreakKind

ASIDE = "A summary of what was said."


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Fail(_Strict):
    """One way to fail, the first `times` times that its step is asked for; then the step is played.

    `status` (with `body` and `headers`) refuses; `drop_after`, `error_after` (with `body`) and `hang_after` break the
    answer after so many pieces; `no_done` keeps back the end mark.
    """

    status: int | None = Field(None, ge=400, le=599)
    body: dict[str, Any] | None = None
    headers: dict[str, str] = {}
    drop_after: int | None = Field(None, ge=0)
    error_after: int | None = Field(None, ge=0)
    hang_after: int | None = Field(None, ge=0)
    no_done: bool = False
    times: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        ways = (self.status, self.drop_after, self.error_after, self.hang_after, self.no_done or None)
        if sum(way is not None for way in ways) != 1:
            raise ValueError("`fail` needs exactly one of status, drop_after, error_after, hang_after, no_done")
        return self

    def breaks(self) -> Break:
        """How the answer breaks, where it isn't refused."""
        if self.no_done:
            return Break(BreakKind.NO_DONE)
        if self.drop_after is not None:
            return Break(BreakKind.DROP, self.drop_after)
        if self.hang_after is not None:
            return Break(BreakKind.HANG, self.hang_after)
        return Break(BreakKind.ERROR, self.error_after or 0, self.body)


class ScriptedCall(_Strict):
    """A tool call; `arguments` an object, or the raw text that is sent in its place."""

    name: str
    arguments: dict[str, Any] | str = {}


class ScriptedUsage(_Strict):
    """Tokens that are told in place of the counted ones."""

    input: int = Field(ge=0)
    output: int = Field(ge=0)


class Step(_Strict):
    """One answer, or `repeat_steps` of them. `{{n}}` in its text and arguments is the answer's number, from 0.

    `tokens` (with `rate`, by the second) makes the text: "t0 t1 t2 …". `say_prompt`: the text tells what was asked,
    as JSON. `pieces_per_s` 0: all at once.
    """

    text: str | None = None
    tokens: int | None = Field(None, ge=1, le=200_000)
    rate: float = Field(50.0, ge=0, le=100_000)
    say_prompt: bool = False
    chars_per_piece: int = Field(4, ge=1)
    pieces_per_s: float = Field(50.0, ge=0, le=100_000)
    first_delay_s: float = Field(0.0, ge=0, le=3600)
    calls: tuple[ScriptedCall, ...] = ()
    fail: Fail | None = None
    usage: ScriptedUsage | None = None
    finish_reason: str | None = None
    repeat_steps: int = Field(1, ge=1, le=10_000)


class Script(_Strict):
    """`steps` in their order; after them the last one for ever (`repeat`) or a plain "done".

    `key`: what its answers are counted under (`{key}/{number}`); unset, a hash of its text. `context_limit`: longer
    requests are refused as OpenAI refuses them, tokens. `aside`: what is said to a request without tools when the
    script calls some: such a request isn't a step of the task, but one for a summary or a title.

    Where older messages give way to a summary, steps must tell themselves apart by `{{n}}` (see `scripted.py`).
    """

    steps: tuple[Step, ...] = Field(min_length=1, max_length=10_000)
    repeat: bool = False
    key: str | None = Field(None, min_length=1, max_length=200)
    context_limit: int | None = Field(None, ge=1)
    aside: str = ASIDE

    def step(self, number: int) -> Step:
        """The step that the answer of this number plays."""
        left = number
        for step in self.steps:
            if left < step.repeat_steps:
                return step
            left -= step.repeat_steps
        return self.steps[-1] if self.repeat else Step(text="done")

    def numbered(self) -> Iterator[tuple[int, Step]]:
        """Every answer's number and step, once through."""
        return enumerate(step for step in self.steps for _ in range(step.repeat_steps))

    @property
    def has_calls(self) -> bool:
        """Whether it is for a task with tools."""
        return any(step.calls for step in self.steps)
