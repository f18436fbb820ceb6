"""How projects start: by template, by their own words, by what their files suggest; and how they say why they don't."""

import json
from typing import Any

import pytest

from tests.e2e.studio import WAIT, Person, Project, Studio, until
from tests.e2e.tail import Tail

SERVER = """\
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/fall":
            print("the last words", flush=True)
            os._exit(3)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"own {self.path} of {sys.argv[1:]}".encode())
print("it listens", flush=True)
http.server.HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""


def own(person: Person, toml: str, **files: str) -> Project:
    """A project with this studio.toml and these files, each with `.py` to its name."""
    project = person.make("static")
    project.put("studio.toml", toml)
    for name, content in files.items():
        project.put(f"{name}.py", content)
    return project


def test_static_template(ann: Person) -> None:
    project = ann.start("static")
    page = project.visit()
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html")
    assert "<h1>Your site is live</h1>" in page.text
    assert project.visit("/favicon.svg").headers["content-type"] == "image/svg+xml"
    assert project.visit("/no/such/page").status_code == 404
    assert project.visit("/.studio/installed").status_code in {403, 404}


def test_fastapi_template_restarts_with_its_source(ann: Person) -> None:
    project = ann.start("fastapi")
    assert project.visit("/api/hello?name=Ann").json()["message"] == "Hello, Ann!"
    assert "Your service is live" in project.visit().text
    assert "studio: installing" not in project.call("GET", "/logs").text.replace("studio: installing: cmp", "")
    source = project.call("GET", "/files/main.py").text
    project.put("main.py", source + "\n\n@app.get('/added')\ndef added() -> int:\n    return 42\n")
    until(lambda: project.visit("/added").text == "42", "the added route", timeout_s=15)


def test_own_dependencies_are_installed_when_they_differ(studio: Studio, ann: Person) -> None:
    project = ann.make("vite-react")
    package = json.loads(project.call("GET", "/files/package.json").text)
    package["dependencies"]["left-pad"] = "1.3.0"
    project.put("package.json", json.dumps(package))
    project.put("src/pad.js", "import pad from 'left-pad'\nexport default pad('7', 3, '0')\n")
    project.start()
    assert "left-pad" in project.visit("/src/pad.js").text
    assert project.run("node -p \"require('left-pad')(7, 3, 0)\"")["stdout"] == "007\n"
    assert installs(project) == 1
    project.stop()
    project.start()
    # A container's log goes on where it is started again; a pod's begins anew.
    assert installs(project) == (0 if studio.mode == "kubernetes" else 1)


def installs(project: Project) -> int:
    return str(project.call("GET", "/logs").text).count("added ")


def test_studio_toml_has_the_last_word(ann: Person) -> None:
    project = own(ann, 'command = "python3 serve.py --mine"\nport = 4321\n', serve=SERVER)
    project.start()
    assert project.visit("/there").text == "own /there of ['--mine']"
    assert "it listens" in project.call("GET", "/logs").text


def test_what_isnt_told_is_detected(ann: Person) -> None:
    project = ann.make("fastapi")
    assert project.call("DELETE", "/files/studio.toml").status_code == 204
    project.start()
    assert project.visit("/api/hello").json()["message"] == "Hello, world!"


@pytest.mark.parametrize(
    ("toml", "reason"),
    [
        (None, "It can't be seen how this project starts"),
        ("port = 'many'", "studio.toml can't be used"),
        ('command = "exit 7"\n', "The command ended with exit code 7."),
    ],
)
def test_a_start_that_cant_be_says_why(studio: Studio, ann: Person, toml: str | None, reason: str) -> None:
    project = ann.make("static")
    gone = ["index.html", "studio.toml", "vite.config.mjs"]
    batch = {"operations": [{"op": "delete", "path": path} for path in gone], "atomic": True}
    assert project.call("POST", "/files:batch", json=batch).status_code == 200
    if toml is not None:
        project.put("studio.toml", toml)
    asked = project.call("POST", "/start", headers=WAIT)
    server = asked.json()["dev_server"]
    assert (server["state"], server["exit_code"]) == ("failed", 7 if "exit" in (toml or "") else None)
    assert reason in server["reason"]
    operation = ann.http.get(asked.headers["location"]).json()
    assert (operation["state"], operation["error"]["detail"]) == ("failed", server["reason"])
    assert operation["error"]["retryable"] is False
    # Traefik 3.0, the last that old clusters understand, tells its page with the status that it stands for.
    told = {503, 502} if studio.mode == "kubernetes" else {503}
    assert project.knock("/", X_Preview_Token=project.preview_token()).status_code in told

    project.put("studio.toml", 'command = "python3 serve.py"\n')
    project.put("serve.py", SERVER)
    project.start()
    assert project.read()["dev_server"]["reason"] is None


def test_a_crash_is_told_with_exit_code_and_last_words(ann: Person) -> None:
    project = own(ann, 'command = "python3 serve.py"\n', serve=SERVER)
    project.start()
    project.visit("/")
    with Tail(project) as tail:
        project.knock("/fall", X_Preview_Token=project.preview_token())
        told = tail.wait_state("dev_server.state", "failed")
        assert (told.data["exit_code"], told.data["reason"]) == (3, "The command ended with exit code 3.")
        assert "the last words" in told.data["log_tail"]
    status = project.call("GET", "/status").json()
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert "the last words" in status["log_tail"]
    project.start()
    assert (project.read()["dev_server"]["exit_code"], project.read()["dev_server"]["log_tail"]) == (None, None)


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/x.git", "https://localhost/x.git", "https://169.254.169.254/latest", "https://[::1]/x.git",
     "https://10.0.0.1/x", "https://2130706433/x.git", "https://[::ffff:127.0.0.1]/x"],
)  # fmt: skip
def test_a_repository_at_a_private_address_is_refused(ann: Person, url: str) -> None:
    made = ann.http.post("/api/projects", json={"name": "git", "git_url": url}, headers=WAIT)
    assert made.status_code == 201, made.text
    project: dict[str, Any] = made.json()
    assert project["state"] == "failed"
    assert "The git address can't be used" in project["state_reason"]
    operation = ann.http.get(made.headers["location"]).json()
    assert (operation["state"], operation["error"]["code"]) == ("failed", "bad_git_url")
    assert not Project(ann, project["id"]).folder.exists()
    started = ann.http.post(f"/api/projects/{project['id']}/start")
    assert (started.status_code, started.json()["code"]) == (409, "project_failed")


@pytest.mark.parametrize(
    "url", ["http://github.com/a/b", "file:///etc", "ssh://git@github.com/a/b", "https://me:pw@x.org/a"]
)
def test_a_repository_that_isnt_https_is_refused_at_once(ann: Person, url: str) -> None:
    refused = ann.http.post("/api/projects", json={"name": "git", "git_url": url})
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_git_url")
