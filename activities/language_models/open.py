"""The one place that knows which models' server there is: LiteLLM's proxy, a plain provider, or none."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal

from activities.errors import ModelFault, ModelMissingError
from activities.language_models.keys import LiteLLMKeys
from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.language_models.passthrough import NoChatCompletions, PassedThrough
from activities.ports import ChatCompletions, LanguageModel, ModelEnd, ModelInfo, ModelKeys, ModelRequest

_OPENAI = "https://api.openai.com/v1"


@dataclass(frozen=True)
class ModelSettings:
    """The proxy goes before the provider. Prices are USD for a token; zero for a provider that tells costs itself.

    `litellm_api_base`: the proxy's root, with or without `/v1`. `openai_api_base`: with its version; None with a key:
    OpenAI's own.
    """

    instance: str
    litellm_api_base: str | None = None
    litellm_master_key: str | None = field(default=None, repr=False)
    openai_api_base: str | None = None
    openai_api_key: str | None = field(default=None, repr=False)
    default_model: str | None = None
    input_price: Decimal = Decimal(0)
    output_price: Decimal = Decimal(0)


@asynccontextmanager
async def open_language_model(settings: ModelSettings) -> AsyncIterator[tuple[LanguageModel, ModelKeys | None]]:
    """The driver, and the users' keys where a proxy keeps them; closed on the way out. Asks nobody by itself."""
    server = _server(settings)
    async with _closing(NoLanguageModel() if server is None else OpenAICompatibleModel(server)) as model:
        if not settings.litellm_api_base or not settings.litellm_master_key:
            yield model, None
            return
        root = _proxy_root(settings.litellm_api_base)
        keys = LiteLLMKeys(root, settings.litellm_master_key, instance=settings.instance)
        try:
            yield model, keys
        finally:
            await keys.close()


@asynccontextmanager
async def _closing(model: LanguageModel) -> AsyncIterator[LanguageModel]:
    try:
        yield model
    finally:
        await model.close()


@asynccontextmanager
async def open_chat_completions(settings: ModelSettings) -> AsyncIterator[ChatCompletions]:
    """The same server's chat completions in its own words; closed on the way out. Asks nobody by itself."""
    server = _server(settings)
    completions = NoChatCompletions() if server is None else PassedThrough(server)
    try:
        yield completions
    finally:
        await completions.close()


def _server(settings: ModelSettings) -> ModelServer | None:
    if settings.litellm_api_base and settings.litellm_master_key:
        return ModelServer(
            f"{_proxy_root(settings.litellm_api_base)}/v1",
            settings.litellm_master_key,
            default_model=settings.default_model,
            is_litellm=True,
        )
    if not settings.openai_api_base and not settings.openai_api_key:
        return None
    return ModelServer(
        settings.openai_api_base or _OPENAI,
        settings.openai_api_key,
        default_model=settings.default_model,
        prices=(settings.input_price, settings.output_price),
    )


def _proxy_root(base: str) -> str:
    return base.rstrip("/").removesuffix("/v1")


class NoLanguageModel:
    """Where no server is configured: nothing is offered, and whoever asks is told what to set."""

    default_model = ""

    async def answer(self, request: ModelRequest, tell: Callable[[str], None]) -> ModelEnd:
        """Raise `ModelMissingError`."""
        del request, tell
        raise _nothing_configured()

    async def models(self) -> list[ModelInfo]:
        """None."""
        return []

    async def ready(self) -> None:
        """Raise `ModelMissingError`."""
        raise _nothing_configured()

    async def close(self) -> None:
        """Nothing is open."""


def _nothing_configured() -> ModelFault:
    return ModelMissingError("No language model is configured: set OPENAI_API_BASE, or LITELLM_API_BASE and its key.")
