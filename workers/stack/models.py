"""Which language models the stack answers with: the provider that the settings name, else a scripted one of its own."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from workers.settings import Settings
from workers.stack.data_directory import DataDirectory
from workers.stack.own_port import choose_port
from workers.stack.part import PartSpec, always
from workers.stack.privileges import die_with_parent
from workers.stack.readiness import answers_ok

_FIRST_PORT = 26_000


@dataclass(frozen=True)
class Models:
    """`shown`: for the person at the terminal. `environment`: what API and worker are told besides the settings.

    `part`: the server that the stack runs for it, None for one of the user's own.
    """

    shown: str
    environment: Mapping[str, str] = field(default_factory=dict)
    part: PartSpec | None = None


def choose_models(settings: Settings, data: DataDirectory) -> Models:
    """The provider of this stack. Raises `StackError` when no port is free for a server of its own."""
    if settings.litellm_api_base:
        return Models(shown=f"LiteLLM proxy at {_address(settings.litellm_api_base)}")
    if settings.openai_api_base or settings.openai_api_key:
        return Models(shown=_address(settings.openai_api_base) if settings.openai_api_base else "OpenAI")
    return _scripted(data)


def _scripted(data: DataDirectory) -> Models:
    port = choose_port(data.root / "model-port.json", first=_FIRST_PORT)
    words = [sys.executable, "-m", "workers.scripted_model", "--port", str(port)]

    async def is_ready(_: int) -> bool:
        return await answers_ok(port, "/healthz")

    return Models(
        shown="scripted demo (no key needed); set OPENAI_API_BASE, … in .env for real ones",
        environment={"OPENAI_API_BASE": f"http://127.0.0.1:{port}/v1", "OPENAI_MODEL": "demo"},
        part=PartSpec(
            name="model",
            command=always(die_with_parent(words)),
            is_ready=is_ready,
            address="scripted, on a port of its own",
        ),
    )


def _address(url: str) -> str:
    """The URL without a name and password that may stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
