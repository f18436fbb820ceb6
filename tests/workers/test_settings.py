import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from api.preview.gate_key import gate_key
from storage.secret_box import SecretBox
from workers.settings import ServiceSettings, Settings, explain
from workers.wiring import runtime_settings

ROOT = Path(__file__).parents[2]
KEY = "k" * 32
NEEDED = {
    "SECRET_KEY": KEY,
    "DATABASE_URL": "postgresql://studio:hidden@localhost/studio",
    "TEMPORAL_ADDRESS": "localhost:7233",
    "DEPLOYMENT_MODE": "docker",
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)


def complaint(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in (NEEDED | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        ServiceSettings()
    return explain(caught.value, ServiceSettings)


def test_example_documents_every_setting_with_its_default() -> None:
    example, _, _ = (ROOT / ".env.example").read_text().partition("# --- docker-compose.yml")
    documented = dict(line.split("=", 1) for line in example.splitlines() if re.match(r"[A-Z_]+=", line))
    assert set(documented) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        default = field.default
        expected = "" if default is None or default == () else str(default)
        assert documented[name.upper()] == expected, name


def test_example_as_env_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    assert Settings() == Settings(_env_file=None)


def test_environment_wins_over_env_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("API_PORT=8100\nPREVIEW_PORT=8200\n")
    monkeypatch.setenv("API_PORT", "8300")
    settings = Settings()
    assert (settings.api_port, settings.preview_port) == (8300, 8200)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("SECRET_KEY", "too-short", "shorter than 32 bytes"),
        ("SECRET_KEY", "", "isn't set"),
        ("DATABASE_URL", "mysql://studio:hidden@localhost/studio", "postgresql://"),
        ("TEMPORAL_ADDRESS", "localhost", "host:port"),
        ("API_PORT", "70000", "65535"),
        ("API_PORT", "eighty", "integer"),
        ("API_HOST", "everywhere", "IPv4 or IPv6"),
        ("DEPLOYMENT_MODE", "swarm", "'docker', 'kubernetes' or 'local'"),
        ("CORS_ORIGINS", "https://a.example, *", "isn't an origin"),
        ("PREVIEW_DOMAIN", "http://preview.example.com", "host name"),
        ("NETWORK_POOL", "10.0.0.1/16", "host bits"),
        ("INSTANCE", "Not_A_Label", "pattern"),
    ],
)
def test_bad_value_is_named_with_a_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, reason: str
) -> None:
    (line,) = complaint(monkeypatch, **{name: value}).splitlines()
    assert line.startswith(f"{name}: ")
    assert reason in line
    assert "A right value: " in line
    assert "hidden" not in line


def test_half_a_proxy_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "LITELLM_MASTER_KEY" in complaint(monkeypatch, LITELLM_API_BASE="http://localhost:4000")


def test_nginx_without_a_gate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "PREVIEW_AUTH_URL" in complaint(monkeypatch, PREVIEW_GATEWAY="nginx")


def test_nginx_is_given_the_gates_key(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"PREVIEW_GATEWAY": "nginx", "PREVIEW_AUTH_URL": "http://api.studio.svc/internal/preview/nginx"}
    for name, value in (NEEDED | given).items():
        monkeypatch.setenv(name, value)
    options = runtime_settings(ServiceSettings()).kubernetes
    assert options.auth_url == f"{given['PREVIEW_AUTH_URL']}?key={gate_key(SecretBox(KEY))}"


def test_secret_key_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (NEEDED | {"SECRET_KEY": "é" * 16}).items():
        monkeypatch.setenv(name, value)
    assert ServiceSettings().secret_key.get_secret_value() == "é" * 16


@pytest.mark.parametrize("process", ["workers.api", "workers.worker"])
def test_process_without_a_key_ends_with_one_clear_line(process: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in NEEDED.items() if name != "SECRET_KEY"} | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-m", process],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.startswith("SECRET_KEY: it isn't set.")
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_secrets_dont_show() -> None:
    settings = Settings(secret_key=KEY, database_url=NEEDED["DATABASE_URL"])
    assert KEY not in repr(settings)
    assert "hidden" not in repr(settings)


def test_scheme_own_port_is_left_out_of_addresses() -> None:
    assert Settings(preview_port=80).shown_preview_port is None
    assert Settings(preview_port=443, preview_scheme="https").shown_preview_port is None
    assert Settings(preview_port=443).shown_preview_port == 443


def test_temporals_key_never_travels_in_the_clear() -> None:
    assert not Settings().temporal_encrypted
    assert Settings(temporal_tls=True).temporal_encrypted
    assert Settings(temporal_api_key="cloud-key").temporal_encrypted
    assert "cloud-key" not in repr(Settings(temporal_api_key="cloud-key"))
