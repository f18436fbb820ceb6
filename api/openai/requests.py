"""The body of a chat completion: looked at as far as money and our own promises need, else passed on as it is."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from workflows.contracts.errors import InvalidError

_BOUNDS: Final = ("max_tokens", "max_completion_tokens")
_OURS: Final = frozenset(
    {
        "api_base",
        "api_key",
        "base_url",
        "extra_headers",
        "fallbacks",
        "mock_response",
        "model_list",
        "num_retries",
        "user_config",
    }
)
"""Words to LiteLLM itself: where to ask, by which key, how often. That is the operator's."""
_MEDIA_CHARACTERS: Final = 6000
"""An image, a sound or a file counts like so much text: 2,000 tokens, whatever its bytes."""
_MEDIA: Final = ("image_url", "input_audio", "file")
_SHOWN: Final = 100


@dataclass(frozen=True)
class CompletionRequest:
    """`body`: what is sent on. `shows_usage`: the client wants the chunk with it. `characters`: of the prompt."""

    body: Mapping[str, Any]
    model: str
    stream: bool
    shows_usage: bool
    characters: int
    max_output_tokens: int


def parse(raw: bytes, *, default_model: str, max_output_tokens: int) -> CompletionRequest:
    """Read a body; `max_output_tokens` bounds the answer, and is its bound when the client names none.

    Raises `InvalidError` for what can't be passed on.
    """
    body = _object(raw)
    for name in sorted(_OURS & body.keys()):
        raise _invalid(f"`{name}` can't be chosen by a request.", "unsupported_parameter")
    if body.get("n") not in [None, 1]:  # not a set: it may be anything
        raise _invalid("`n` must be 1.")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _invalid("`messages` must be a list of at least one message.")
    model = body.get("model") or default_model
    if not isinstance(model, str) or "\x00" in model or len(model) > _SHOWN * 2:
        raise _invalid("`model` must be the name of a model.")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _invalid("`stream` must be true or false.")
    sent = {**body, "model": model, "stream": bool(stream)}
    shows_usage = _ask_for_usage(sent) if stream else True
    bound = _bound(sent, max_output_tokens)
    return CompletionRequest(sent, model, bool(stream), shows_usage, characters(body, _sendable), bound)


def characters(value: object, length: Callable[[str], int] = len) -> int:
    """How much text a JSON value holds, keys and all, as a model counts it. `length`: of one text."""
    count = 0
    left = [(value, True)]
    while left:  # not by recursion: a client chooses the depth
        item, counts = left.pop()
        if isinstance(item, dict):
            if counts and item.get("type") in _MEDIA:
                count, counts = count + _MEDIA_CHARACTERS, False
            left.extend((part, counts) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            left.extend((part, counts) for part in item)
        else:
            size = length(item) if isinstance(item, str) else 1
            count += size if counts else 0
    return count


def _object(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _invalid("The body isn't valid JSON.") from error
    if not isinstance(body, dict):
        raise _invalid("The body must be a JSON object.")
    return body


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} isn't JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is too large")
    return number


def _ask_for_usage(sent: dict[str, Any]) -> bool:
    """Have the server tell the usage, always; whether the client has asked for it, too."""
    options = sent.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise _invalid("`stream_options` must be an object.")
    sent["stream_options"] = {**(options or {}), "include_usage": True}
    return bool(options and options.get("include_usage"))


def _bound(sent: dict[str, Any], most: int) -> int:
    """The bound of the answer; what the client has named is lowered to ours in `sent`."""
    bound = most
    for name in _BOUNDS:
        value = sent.get(name)
        if value is None:
            sent.pop(name, None)
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise _invalid(f"`{name}` must be a whole number above 0.")
        sent[name] = bound = min(value, bound)
    return bound


def _sendable(text: str) -> int:
    """Its length. Raises `InvalidError` for what is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _invalid("The body holds half of a surrogate pair.") from error
    return len(text)


def _invalid(detail: str, code: str | None = None) -> InvalidError:
    return InvalidError(detail, code=code or "bad_request")
