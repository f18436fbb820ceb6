"""The whole studio as its users have it: over HTTP alone, signed in as somebody."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx

from tests.workers.stacks import RunningStack

PASSWORD = "correct horse battery"
WAIT = {"Prefer": "wait=60"}

Result = TypeVar("Result")


def until(ask: Callable[[], Result | None], what: str, timeout_s: float = 20.0) -> Result:
    """The first answer that isn't None or False."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(0.05)


_FRESH_S = 300.0


@dataclass
class Studio:
    """A stack that is ready. `mode`: where its dev servers run. `shots`: a folder for screenshots."""

    stack: RunningStack
    mode: str
    shots: Path
    measured: list[str] = field(default_factory=list)
    _people: dict[str, "Person"] = field(default_factory=dict)

    @property
    def api(self) -> str:
        """As browsers know it."""
        return f"http://localhost:{self.stack.environment['API_PORT']}"

    @property
    def preview_port(self) -> int:
        return int(self.stack.environment["PREVIEW_PORT"])

    @property
    def files(self) -> Path:
        return self.stack.data / "projects"

    def person(self, name: str) -> "Person":
        """Somebody who has registered; the same one for the same name."""
        if name not in self._people:
            self._people[name] = Person(self, f"{name}-{uuid4().hex[:6]}@example.com")
        self._people[name].sign_in()
        return self._people[name]

    def tell(self, what: str, seconds: float) -> None:
        """Say at the end of the tests how long something took."""
        self.measured.append(f"{self.mode:<7} {what}: {1000 * seconds:.0f} ms")

    def close(self) -> None:
        for person in self._people.values():
            person.http.close()


class Person:
    """A user with a session; `http` sends it."""

    def __init__(self, studio: Studio, email: str) -> None:
        self.studio = studio
        self.email = email
        self.http = httpx.Client(base_url=studio.stack.api, timeout=75)
        answer = self.http.post("/api/auth/register", json={"email": email, "password": PASSWORD})
        assert answer.status_code == 201, answer.text
        self.id = int(answer.json()["user"]["id"])
        self.kept: set[int] = set()
        self._take(answer)

    def sign_in(self) -> None:
        """Anew, where the session is older than a test takes: access ends after a quarter of an hour."""
        if time.monotonic() - self._signed_in > _FRESH_S:
            answer = self.http.post("/api/auth/login", data={"username": self.email, "password": PASSWORD})
            assert answer.status_code == 200, answer.text
            self._take(answer)

    def _take(self, answer: httpx.Response) -> None:
        self._signed_in = time.monotonic()
        self.token = str(answer.json()["access_token"])
        self.http.cookies.clear()  # a program has the bearer only
        self.http.headers["Authorization"] = f"Bearer {self.token}"

    def make(self, template: str, *, keep: bool = False) -> "Project":
        """A project that is ready. `keep`: beyond the test that asks first."""
        body = {"name": f"{template} of {self.email}", "template": template}
        answer = self.http.post("/api/projects", json=body, headers=WAIT)
        assert (answer.status_code, answer.json()["state"]) == (201, "ready"), answer.text
        project = Project(self, answer.json()["id"])
        if keep:
            self.kept.add(project.id)
        return project

    def start(self, template: str, *, keep: bool = False) -> "Project":
        """A project that runs."""
        project = self.make(template, keep=keep)
        project.start()
        return project

    def tidy_up(self) -> None:
        """Have all projects deleted that aren't kept; doesn't wait for it."""
        for project in self.http.get("/api/projects?limit=200").json()["items"]:
            if project["id"] not in self.kept and project["state"] != "deleting":
                answer = self.http.delete(f"/api/projects/{project['id']}")
                assert answer.status_code in {202, 404}, answer.text


class Project:
    """A project, as its owner works with it."""

    def __init__(self, owner: Person, project_id: int) -> None:
        self.owner = owner
        self.id = project_id

    @property
    def name(self) -> str:
        """Of its container, and the first label of its preview's host."""
        return f"user{self.owner.id}-project{self.id}"

    @property
    def host(self) -> str:
        return f"{self.name}.localhost:{self.owner.studio.preview_port}"

    @property
    def folder(self) -> Path:
        return self.owner.studio.files / "users" / str(self.owner.id) / "projects" / str(self.id)

    def call(self, method: str, path: str = "", **request: Any) -> httpx.Response:
        return self.owner.http.request(method, f"/api/projects/{self.id}{path}", **request)

    def read(self) -> dict[str, Any]:
        return dict(self.call("GET").json())

    def put(self, path: str, content: str) -> httpx.Response:
        answer = self.call("PUT", f"/files/{path}", content=content.encode())
        assert answer.is_success, answer.text
        return answer

    def command(self, action: str) -> dict[str, Any]:
        """Start, stop or restart it, and wait for how that ends: its dev server then."""
        answer = self.call("POST", f"/{action}", headers=WAIT)
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["dev_server"])

    def start(self) -> None:
        server = self.command("start")
        assert server["state"] == "running", server

    def stop(self) -> None:
        server = self.command("stop")
        assert server["state"] == "stopped", server

    def run(self, command: str, **fields: Any) -> dict[str, Any]:
        answer = self.call("POST", "/exec", json={"command": command, **fields})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def preview_link(self) -> str:
        answer = self.call("POST", "/preview-token")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["url"])

    def preview_token(self) -> str:
        return str(self.call("POST", "/preview-token").json()["token"])

    def knock(self, path: str = "/", **headers: str) -> httpx.Response:
        """A request to the preview with these headers alone; `_` in names stands for `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.owner.studio.preview_port}{path}"
        return httpx.get(url, headers={"Host": self.host, **named}, timeout=15)

    def visit(self, path: str = "/") -> httpx.Response:
        """The app's own answer, as a program of its owner gets it: waits for the route, a moment after `running`."""
        token = self.preview_token()

        def answer() -> httpx.Response | None:
            response = self.knock(path, X_Preview_Token=token)
            return None if response.status_code == 503 else response

        return until(answer, f"an answer of {self.host}", timeout_s=10)
