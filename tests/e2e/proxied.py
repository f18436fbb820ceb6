"""A studio whose models answer through a real LiteLLM proxy, and what the proxy's own operator sees of its keys."""

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil

import docker
from tests.e2e.studio import Person, Project, Studio, until
from tests.e2e.tasks import Json, apart
from tests.workers.stacks import stack_environment
from workers.stack.data_directory import DataDirectory
from workers.stack.postgres import EmbeddedPostgres
from workers.superuser import promote
from workflows.contracts.names import LABEL_PROJECT, LABEL_USER, model_key_alias

INPUT_PRICE, OUTPUT_PRICE = 10, 100
"""Of a million tokens, in USD."""
KEY = re.compile(r"\bsk-[\w-]{8,}")


def proxied_environment(data: Path) -> dict[str, str]:
    """Models at a price, and dev servers that sleep soon."""
    return stack_environment(data) | {
        "LITELLM": "1",
        "OPENAI_INPUT_PRICE": str(INPUT_PRICE),
        "OPENAI_OUTPUT_PRICE": str(OUTPUT_PRICE),
        "IDLE_TIMEOUT_S": "8",
        "IDLE_GRACE_S": "2",
    }


class Proxy:
    """The stack's proxy, in the hands of its operator."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        stack = studio.stack
        told = psutil.Process(stack.pid("api")).environ()
        self.master_key = told["LITELLM_MASTER_KEY"]
        self._http = httpx.Client(
            base_url=told["LITELLM_API_BASE"], headers={"Authorization": f"Bearer {self.master_key}"}, timeout=30
        )
        models = psutil.Process(stack.pid("model")).cmdline()
        self._models_port = int(models[models.index("--port") + 1])

    def alias(self, person: Person) -> str:
        return model_key_alias(DataDirectory(self._studio.stack.data).instance, person.id)

    def keys(self) -> dict[str, Json]:
        """Every key that the proxy knows, by its alias."""
        listed = self.call("GET", "/key/list", params={"return_full_object": "true", "size": 100})
        return {str(key["key_alias"]): key for key in listed["keys"]}

    def key(self, person: Person) -> Json:
        """The person's own, as soon as there is one."""
        return until(lambda: self.keys().get(self.alias(person)), f"a key of {person.email}", timeout_s=60)

    def spends(self) -> dict[str, float]:
        """What was spent under each key, by its alias."""
        return {alias: float(key["spend"]) for alias, key in self.keys().items()}

    def call(self, method: str, path: str, **request: Any) -> Json:
        answer = self._http.request(method, path, **request)
        assert answer.is_success, answer.text
        return dict(answer.json())

    def asked(self, key: str) -> dict[str, int]:
        """How often the model behind the proxy was asked for each answer of the script that has this key."""
        calls = httpx.get(f"http://127.0.0.1:{self._models_port}/calls", timeout=10).json()["calls"]
        return {name.removeprefix(f"{key}/"): n["begun"] for name, n in calls.items() if name.startswith(f"{key}/")}

    def close(self) -> None:
        self._http.close()


class Operator:
    """A superuser of the studio."""

    def __init__(self, studio: Studio) -> None:
        self._person = studio.person("operator")
        url = EmbeddedPostgres(studio.stack.data / "postgres").url()
        apart(promote(url, self._person.email))

    def set_budget(self, person: Person, usd: float | None) -> None:
        """What the person may spend in a month."""
        answer = self._person.http.patch(f"/api/admin/users/{person.id}", json={"monthly_budget_usd": usd})
        assert answer.status_code == 200, answer.text

    def replace_key(self, person: Person) -> None:
        """Have the person's key at the proxy made anew."""
        answer = self._person.http.post(f"/api/admin/users/{person.id}/model-key")
        assert answer.status_code == 202, answer.text


def where_keys_might_show(project: Project) -> dict[str, str]:
    """The logs of the stack's processes, and all that the project's container can see of its own."""
    logs = (project.owner.studio.stack.data / "logs").glob("*.log")
    texts = {path.name: path.read_text(errors="replace") for path in logs}
    with closing(docker.from_env()) as engine:
        labels = [f"{LABEL_USER}={project.owner.id}", f"{LABEL_PROJECT}={project.id}"]
        [container] = engine.containers.list(filters={"label": labels})
        texts["the container"] = str(container.attrs)
        environments = container.exec_run(["sh", "-c", "cat /proc/[0-9]*/environ 2>/dev/null; true"]).output
        assert isinstance(environments, bytes)
        texts["the container's processes"] = environments.decode(errors="replace")
    return texts
