"""What docker-compose.yml promises, read from it."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from workers.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
STEPS = {"gateway-files", "migrate", "devserver-image", "temporal-schema", "temporal-setup"}
"""They end before others begin; all others stay."""

NOT_IN_A_CONTAINER = {
    "DATA_DIR", "TEMPORAL_PORT", "TEMPORAL_UI_PORT", "LITELLM", "READY_FILE", "API_HOST", "API_PORT",
    "OPENAI_API_BASE", "OPENAI_API_KEY", "TEMPORAL_TLS", "TEMPORAL_API_KEY",
}  # fmt: skip
"""Of `make up` or of a Temporal elsewhere, or of other services here (the provider's key is the proxy's alone), or set
in the images."""
OTHER_MODES = re.compile(
    r"KUBE|INGRESS_|PREVIEW_(GATEWAY|MIDDLEWARES|AUTH_URL|TLS_SECRET|CERT_ISSUER)|RUNTIME_CLASS|NODE_SELECTOR|WORKER_"
)


def test_every_setting_reaches_api_and_worker() -> None:
    wanted = {name.upper() for name in Settings.model_fields} - NOT_IN_A_CONTAINER
    wanted = {name for name in wanted if not OTHER_MODES.match(name)}
    assert wanted - set(SERVICES["worker"]["environment"]) == {"TRUSTED_PROXIES"}
    assert wanted - set(SERVICES["api"]["environment"]) == {"ENGINE_RELAY"}


def test_whatever_the_file_asks_for_is_documented() -> None:
    documented = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\$\{([A-Z_]+)", TEXT)) <= documented


def test_the_engines_socket_is_mounted_into_the_worker_only() -> None:
    assert [name for name, service in SERVICES.items() if "docker.sock" in str(service.get("volumes"))] == ["worker"]


def test_ports_are_published_on_loopback_alone() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", sorted(set(SERVICES) - STEPS))
def test_what_stays_is_started_again(name: str) -> None:
    assert SERVICES[name]["restart"] == "unless-stopped"


def test_what_others_wait_for_tells_how_it_is() -> None:
    """By the compose file, or by the image that is built here."""
    for service in SERVICES.values():
        for name, wait in service.get("depends_on", {}).items():
            assert wait["condition"] == ("service_completed_successfully" if name in STEPS else "service_healthy")
            assert name in STEPS or "healthcheck" in SERVICES[name]
    for name in ("api", "litellm"):
        assert "HEALTHCHECK" in (ROOT / SERVICES[name]["build"]["dockerfile"]).read_text(encoding="utf-8")


def test_versions_are_pinned() -> None:
    for name, service in SERVICES.items():
        tag = service["image"].rpartition(":")[2].rstrip("}")
        assert "build" in service or service["image"].startswith("studio-") or re.fullmatch(r"v?\d[\d.]*", tag), name


def test_the_env_that_is_made_has_every_secret(tmp_path: Path) -> None:
    (tmp_path / "docker").mkdir()
    for name in ("docker/env", ".env.example"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    command = ["bash", str(tmp_path / "docker/env")]
    subprocess.run(command, check=True, capture_output=True)
    made = tmp_path / ".env"
    assert made.stat().st_mode & 0o077 == 0
    values = dict(re.findall(r"^([A-Z_]+)=(.*)$", made.read_text(), re.MULTILINE))
    required = set(re.findall(r"\$\{([A-Z_]+):\?", TEXT))
    assert required == {"SECRET_KEY", "POSTGRES_PASSWORD", "LITELLM_MASTER_KEY", "LITELLM_SALT_KEY"}
    assert all(len(values[name]) >= 32 for name in required)
    assert len({values[name] for name in required}) == len(required)
    Settings(_env_file=made)
    before = made.read_bytes()
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0
    assert made.read_bytes() == before
