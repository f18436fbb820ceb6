"""What Traefik starts from on one host, for docker-compose.yml."""

import json
from pathlib import Path

import pytest

from workers.host_gateway import main

ENVIRONMENT = {
    "SECRET_KEY": "k" * 40,
    "DATABASE_URL": "postgresql://studio@postgres/studio",
    "TEMPORAL_ADDRESS": "temporal:7233",
    "DEPLOYMENT_MODE": "docker",
    "INSTANCE": "one",
    "PREVIEW_PORT": "8480",
    "PUBLIC_URL": "http://api.localhost:8480",
}


def test_api_and_previews_share_loopbacks_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    main([str(tmp_path), "/run/studio/engine.sock", "http://127.0.0.1:8000"])
    static, dynamic = (json.loads((tmp_path / name).read_text()) for name in ("static.yml", "dynamic.yml"))
    assert static["entryPoints"]["web"]["address"] == "127.0.0.1:8480"
    assert static["providers"]["docker"]["endpoint"] == "unix:///run/studio/engine.sock"
    assert "`one`" in static["providers"]["docker"]["constraints"]
    assert static["providers"]["file"]["filename"] == str(tmp_path / "dynamic.yml")
    router = dynamic["http"]["routers"]["api"]
    assert router["rule"] == "Host(`api.localhost`)"
    servers = dynamic["http"]["services"][router["service"]]["loadBalancer"]["servers"]
    assert servers == [{"url": "http://127.0.0.1:8000"}]
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


def test_words_are_missed_with_an_explanation() -> None:
    with pytest.raises(SystemExit, match="host_gateway FOLDER"):
        main([])
