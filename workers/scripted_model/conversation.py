"""A request as OpenAI's clients send it, as far as a scripted model looks at it; unknown fields are ignored."""

from typing import Any

from pydantic import BaseModel, Field

CHARS_PER_TOKEN = 4
"""How tokens are estimated: near enough to a real model's for budgets and bounds."""


class FunctionCall(BaseModel):
    """A tool's name, and its arguments as the JSON text that the model wrote."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call that an assistant's message asked for."""

    id: str
    function: FunctionCall


class Message(BaseModel):
    """One message; `content` is text, or parts of which those with a `text` count."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""

    @property
    def calls(self) -> list[ToolCall]:
        """The calls that it asked for."""
        return self.tool_calls or []


class OfferedFunction(BaseModel):
    """What a model is told of a tool."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OfferedTool(BaseModel):
    """A tool that may be called."""

    function: OfferedFunction


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk tells the tokens."""

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`."""

    model: str
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    tools: list[OfferedTool] | None = None

    @property
    def tool_names(self) -> set[str]:
        """Names of the tools that are offered."""
        return {tool.function.name for tool in self.tools or ()}

    @property
    def wants_usage_chunk(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def newest_user_message(self) -> int:
        """Index of the newest message of a user; -1 when there is none."""
        return max((i for i, message in enumerate(self.messages) if message.role == "user"), default=-1)

    def tokens(self) -> int:
        """About how many tokens it is long, its tools included."""
        chars = sum(len(message.role) + len(message.text) for message in self.messages)
        for message in self.messages:
            chars += sum(len(call.function.name) + len(call.function.arguments) for call in message.calls)
        chars += sum(len(tool.model_dump_json()) for tool in self.tools or ())
        return count_tokens(chars)


def count_tokens(chars: int) -> int:
    """Tokens of a text of so many characters, at least one."""
    return max(1, -(-chars // CHARS_PER_TOKEN))
