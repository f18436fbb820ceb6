"""`make up LITELLM=1` on its real parts, and what is refused before they start."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from activities.language_models.open import ModelSettings, open_language_model
from activities.ports import ModelEnd, ModelMessage, ModelRequest
from tests.language_models.servers import WireServer, answering
from tests.workers.stacks import RunningStack, running_stack, stack_environment
from workers.settings import Settings
from workers.stack.data_directory import DataDirectory, StackError
from workers.stack.litellm import Proxy, _upstream, configuration
from workers.stack.models import choose_models

SECRET = "a secret key of the tests, long enough for anyone"


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    directory = DataDirectory(tmp_path / "data")
    directory.create()
    return directory


async def configured(data: DataDirectory, **given: Any) -> list[dict[str, Any]]:
    settings = Settings.model_validate(given)
    models = (await configuration(_upstream(settings, choose_models(settings, data))))["model_list"]
    assert isinstance(models, list)
    return models


async def test_the_proxy_stands_before_the_named_model_with_its_prices(data: DataDirectory) -> None:
    (entry,) = await configured(
        data,
        openai_api_base="https://models.example.com/v1",
        openai_api_key="sk-provider",
        openai_model="big",
        openai_input_price=2,
        openai_output_price="10",
    )
    assert entry["model_name"] == "big"
    assert entry["litellm_params"] == {
        "model": "openai/big",
        "api_base": "https://models.example.com/v1",
        "api_key": "os.environ/OPENAI_API_KEY",
        "input_cost_per_token": 2e-6,
        "output_cost_per_token": 1e-5,
    }


async def test_without_a_name_it_offers_what_the_provider_does(data: DataDirectory) -> None:
    async with WireServer(answering(200, {"data": [{"id": "b"}, {"id": "a"}]})).up() as address:
        entries = await configured(data, openai_api_base=address)
    assert [entry["model_name"] for entry in entries] == ["a", "b"]


async def test_a_provider_that_tells_no_models_needs_a_name(data: DataDirectory) -> None:
    async with WireServer(answering(401, {"error": {"message": "no"}})).up() as address:
        with pytest.raises(StackError, match="OPENAI_MODEL"):
            await configured(data, openai_api_base=address)


def test_two_proxies_are_refused(data: DataDirectory) -> None:
    settings = Settings.model_validate({"litellm_api_base": "http://127.0.0.1:4000", "litellm_master_key": "sk-x"})
    with pytest.raises(StackError, match="LITELLM_API_BASE"):
        Proxy(settings, data, choose_models(settings, data), secret_key=SECRET, database_url=lambda: "")


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    environment = stack_environment(tmp_path_factory.mktemp("litellm") / "data") | {"LITELLM": "1"}
    with running_stack(environment, 240) as running:
        yield running


async def say_hello(environment: dict[str, str]) -> ModelEnd:
    """An answer of the scripted model with a key of a user's own."""
    settings = ModelSettings(
        "elsewhere",
        litellm_api_base=environment["LITELLM_API_BASE"],
        litellm_master_key=environment["LITELLM_MASTER_KEY"],
        default_model="scripted",
    )
    async with open_language_model(settings) as (model, keys):
        assert keys is not None
        key = await keys.create(1, budget_usd=None)
        assert [info.id for info in await model.models()] == ["demo", "scripted"]
        end = await model.answer(ModelRequest("", (ModelMessage("user", "hello"),), key=key), lambda _: None)
        await keys.revoke(1)
    return end


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.litellm
class TestProxyOfTheStack:
    def test_the_service_speaks_through_it(self, stack: RunningStack) -> None:
        assert "LiteLLM proxy on http://127.0.0.1:" in stack.output
        ready = httpx.get(f"{stack.api}/readyz", timeout=10).json()
        assert ready["dependencies"]["models"]["state"] == "up"
        end = asyncio.run(say_hello(psutil.Process(stack.pid("api")).environ()))
        assert (end.finish_reason, end.usage is not None) == ("stop", True)

    def test_its_keys_are_on_no_command_line_and_in_no_file(self, stack: RunningStack) -> None:
        environment = psutil.Process(stack.pid("litellm")).environ()
        secrets = [environment[name] for name in ("LITELLM_MASTER_KEY", "LITELLM_SALT_KEY", "DATABASE_URL")]
        lines = [" ".join(process.cmdline()) for process in stack.processes()]
        texts = [path.read_text() for path in (stack.data / "litellm").iterdir()]
        texts += [path.read_text(errors="replace") for path in (stack.data / "logs").glob("*.log")]
        assert not [secret for secret in secrets for text in [*lines, *texts] if secret in text]
        assert json.loads((stack.data / "litellm" / "config.yaml").read_text())["model_list"]

    @pytest.mark.chaos
    def test_killed_it_comes_back_with_its_keys(self, stack: RunningStack) -> None:
        before = len(stack.lines)
        psutil.Process(stack.pid("litellm")).kill()
        stack.wait_line("litellm", "ready again", timeout_s=240, since=before)
        asyncio.run(say_hello(psutil.Process(stack.pid("api")).environ()))
