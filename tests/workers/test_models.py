"""Which language models a stack answers with, and the port of the part that it runs for them."""

import socket
from pathlib import Path

import pytest

from workers.settings import Settings
from workers.stack.data_directory import DataDirectory
from workers.stack.models import choose_models
from workers.stack.own_port import choose_port


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    directory = DataDirectory(tmp_path / "data")
    directory.create()
    return directory


def test_without_a_provider_it_runs_its_own(data: DataDirectory) -> None:
    models = choose_models(Settings.model_validate({}), data)
    assert models.part is not None
    assert models.environment["OPENAI_MODEL"] == "demo"
    assert models.environment["OPENAI_API_BASE"].startswith("http://127.0.0.1:")
    assert "no key needed" in models.shown
    assert choose_models(Settings.model_validate({}), data).environment == models.environment


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({"openai_api_key": "sk-hidden"}, "OpenAI"),
        ({"openai_api_base": "https://me:hidden@models.example.com/v1"}, "https://models.example.com/v1"),
        (
            {"litellm_api_base": "http://127.0.0.1:4000", "litellm_master_key": "sk-hidden"},
            "LiteLLM proxy at http://127.0.0.1:4000",
        ),
    ],
)
def test_a_provider_of_ones_own_is_used(data: DataDirectory, given: dict[str, str], shown: str) -> None:
    models = choose_models(Settings.model_validate(given), data)
    assert models.part is None
    assert models.environment == {}
    assert models.shown == shown


def test_a_port_is_kept_while_it_is_free(tmp_path: Path) -> None:
    note = tmp_path / "port.json"
    port = choose_port(note, first=26_000)
    assert choose_port(note, first=26_000) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        other = choose_port(note, first=26_000)
    assert other != port
    assert choose_port(note, first=26_000) == other
