"""The one place that knows which models' server there is: LiteLLM's proxy, a plain provider, or none."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal

from activities.errors import ModelMissingError
from activities.language_models.keys import LiteLLMKeys
from activities.language_models.openai_compatible import ModelServer, OpenAICompatibleModel
from activities.ports import LanguageModel, ModelEnd, ModelInfo, ModelKeys, ModelRequest, ModelText

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
    if settings.litellm_api_base and settings.litellm_master_key:
        root = settings.litellm_api_base.rstrip("/").removesuffix("/v1")
        keys = LiteLLMKeys(root, settings.litellm_master_key, instance=settings.instance)
        server = ModelServer(
            f"{root}/v1", settings.litellm_master_key, default_model=settings.default_model, is_litellm=True
        )
        async with _closing(OpenAICompatibleModel(server)) as model:
            try:
                yield model, keys
            finally:
                await keys.close()
        return
    async with _closing(_plain(settings)) as model:
        yield model, None


@asynccontextmanager
async def _closing(model: LanguageModel) -> AsyncIterator[LanguageModel]:
    try:
        yield model
    finally:
        await model.close()


def _plain(settings: ModelSettings) -> LanguageModel:
    if not settings.openai_api_base and not settings.openai_api_key:
        return NoLanguageModel()
    prices = (settings.input_price, settings.output_price)
    return OpenAICompatibleModel(
        ModelServer(
            settings.openai_api_base or _OPENAI,
            settings.openai_api_key,
            default_model=settings.default_model,
            prices=prices,
        )
    )


class NoLanguageModel:
    """Where no server is configured: nothing is offered, and whoever asks is told what to set."""

    default_model = ""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelText | ModelEnd]:
        """Raise `ModelMissingError`."""
        del request
        await self.ready()
        yield ModelEnd("stop")

    async def models(self) -> list[ModelInfo]:
        """None."""
        return []

    async def ready(self) -> None:
        """Raise `ModelMissingError`."""
        raise ModelMissingError(
            "No language model is configured: set OPENAI_API_BASE, or LITELLM_API_BASE and its key."
        )

    async def close(self) -> None:
        """Nothing is open."""
