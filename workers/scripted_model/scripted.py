"""The model `scripted`: finds the script in the conversation, and in it the step that comes next."""

import hashlib
import json
import re
from itertools import islice
from secrets import token_hex

from pydantic import ValidationError

from workers.scripted_model.answer import Answer, Call, Refusal, Usage
from workers.scripted_model.conversation import ChatRequest, Message, count_tokens
from workers.scripted_model.counters import Counters
from workers.scripted_model.script import ASIDE, Script, ScriptedCall, Step
from workers.scripted_model.wire import error_body

_BLOCK = re.compile(r"<script>(.*?)</script>", re.DOTALL)
_SEARCHED = 20_000
"""How far into a script its place is looked for."""
_ECHOED_CHARS = 2000
_WORDING = {
    401: ("Incorrect API key provided.", "invalid_request_error", "invalid_api_key"),
    403: ("Your key may not use this model.", "invalid_request_error", "permission_denied"),
    404: ("The model does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"),
    429: ("Rate limit reached for requests.", "requests", "rate_limit_exceeded"),
}


class ScriptError(ValueError):
    """The script in the conversation isn't one; the message says where. `is_cut`: it isn't even JSON."""

    def __init__(self, message: str, *, is_cut: bool) -> None:
        super().__init__(message)
        self.is_cut = is_cut


def answer_scripted(request: ChatRequest, counters: Counters) -> Answer | Refusal:
    """The next answer of the conversation's script; without one an echo. Counts it as begun. Raises `ScriptError`."""
    try:
        found = _find(request)
    except ScriptError as error:
        if request.tools or not error.is_cut:
            raise
        # Quoted and cut in the middle, by somebody who wants a summary.
        counters.begin("scripted/aside")
        return _play(request, Step(text=ASIDE), "scripted/aside", 0)
    if found is None:
        said = request.messages[request.newest_user_message()].text
        counters.begin("scripted/echo")
        return _play(request, Step(text=f"You said: {said[:_ECHOED_CHARS]}"), "scripted/echo", 0)
    position, script, name = found
    if script.context_limit is not None and request.tokens() > script.context_limit:
        return _too_long(request, script.context_limit, f"{name}/too-long", counters)
    if script.has_calls and not request.tools:
        counters.begin(f"{name}/aside")
        return _play(request, Step(text=script.aside), f"{name}/aside", 0)
    number = _number(request, script, position)
    key = f"{name}/{number}"
    return _play_or_fail(request, script.step(number), key, number, counters.begin(key))


def _find(request: ChatRequest) -> tuple[int, Script, str] | None:
    """Index of the newest user message with a script, the script, and what it is counted under.

    One that isn't JSON counts only when there is no other: summaries quote scripts in pieces.
    """
    broken: ScriptError | None = None
    for index in range(len(request.messages) - 1, -1, -1):
        message = request.messages[index]
        blocks = _BLOCK.findall(message.text) if message.role == "user" else []
        if blocks:
            try:
                script = _parse(blocks[-1])
            except ScriptError as error:
                if not error.is_cut:
                    raise
                broken = broken or error
                continue
            return index, script, script.key or hashlib.sha256(blocks[-1].encode()).hexdigest()[:16]
    if broken is not None:
        raise broken
    return None


def _parse(text: str) -> Script:
    try:
        return Script.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(str(word) for word in problem["loc"]) or "its JSON"
        is_cut = problem["type"] == "json_invalid"
        raise ScriptError(f"The <script> is wrong at {where}: {problem['msg']}", is_cut=is_cut) from error


def _number(request: ChatRequest, script: Script, position: int) -> int:
    """Which answer is due: how many there were since the script.

    Where older ones gave way to a summary, the newest one tells: it is that step's with this number filled in.
    """
    since = [message for message in request.messages[position + 1 :] if message.role == "assistant"]
    if not since:
        return 0
    later = islice(script.numbered(), len(since) - 1, _SEARCHED)
    return next((number + 1 for number, step in later if _is_answer(since[-1], step, number)), len(since))


def _is_answer(message: Message, step: Step, number: int) -> bool:
    """Whether the message is what the step says under this number; by its calls, where it has some."""
    if len(message.calls) != len(step.calls):
        return False
    if not step.calls:
        return message.text.strip() == _fill(step.text or "", number).strip()
    told = [(call.function.name, call.function.arguments) for call in message.calls]
    return told == [(call.name, _arguments(call, number)) for call in step.calls]


def _play_or_fail(request: ChatRequest, step: Step, key: str, number: int, earlier: int) -> Answer | Refusal:
    fail = step.fail if step.fail and earlier < step.fail.times else None
    if fail is None or fail.status is None:
        return _play(request, step, key, number, failing=fail is not None)
    message, kind, code = _WORDING.get(fail.status, ("The server had an error.", "server_error", None))
    return Refusal(key, fail.status, fail.body or error_body(message, kind=kind, code=code), fail.headers)


def _play(request: ChatRequest, step: Step, key: str, number: int, *, failing: bool = False) -> Answer:
    pieces = _pieces(request, step, number)
    calls = tuple(
        # No two answers have the same ids, as with a real model.
        Call(id=f"call_{token_hex(12)}", name=call.name, arguments=_arguments(call, number))
        for call in step.calls
    )
    return Answer(
        key=key,
        pieces=pieces,
        calls=calls,
        pieces_per_s=step.rate if step.tokens else step.pieces_per_s,
        first_delay_s=step.first_delay_s,
        finish_reason=step.finish_reason or ("tool_calls" if calls else "stop"),
        usage=_usage(request, step, pieces, calls),
        breaks=step.fail.breaks() if step.fail and failing else None,
    )


def _pieces(request: ChatRequest, step: Step, number: int) -> list[str]:
    if step.tokens:
        return [f"t{index} " for index in range(step.tokens)]
    text = _describe(request) if step.say_prompt else _fill(step.text or "", number)
    size = step.chars_per_piece
    return [text[start : start + size] for start in range(0, len(text), size)]


def _usage(request: ChatRequest, step: Step, pieces: list[str], calls: tuple[Call, ...]) -> Usage:
    if step.usage:
        return Usage(step.usage.input, step.usage.output)
    chars = sum(map(len, pieces)) + sum(len(call.name) + len(call.arguments) for call in calls)
    return Usage(request.tokens(), step.tokens or count_tokens(chars))


def _arguments(call: ScriptedCall, number: int) -> str:
    return _fill(call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments), number)


def _fill(text: str, number: int) -> str:
    return text.replace("{{n}}", str(number))


def _describe(request: ChatRequest) -> str:
    """What was asked, as JSON: each message's role, length and calls; the tools' names."""
    messages = [
        {"role": message.role, "chars": len(message.text), "calls": len(message.calls)} for message in request.messages
    ]
    return json.dumps({"messages": messages, "tools": sorted(request.tool_names)})


def _too_long(request: ChatRequest, limit: int, key: str, counters: Counters) -> Refusal:
    counters.begin(key)
    message = (
        f"This model's maximum context length is {limit} tokens. However, your messages resulted in "
        f"{request.tokens()} tokens. Please reduce the length of the messages."
    )
    return Refusal(key, 400, error_body(message, code="context_length_exceeded", param="messages"))
