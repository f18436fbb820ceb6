"""What answers in place of a server that doesn't run: a page that starts it for its owner, a plain 503 for the rest.

The page asks for the state under media types of its own. Asking for the state never starts anything; a navigation
does, except right after a failure, so that an app that crashes at once isn't started over and over by its own page.
"""

from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from api.dev_servers import service as dev_servers_service
from api.errors import problem_of
from api.preview.pages import waiting_page
from api.services import Services
from storage import previews, projects
from storage.previews import PreviewView
from workflows.contracts.dev_servers import DevServerAction, DevServerStage, DevServerState
from workflows.contracts.errors import NotFoundError, StudioError, UnavailableError
from workflows.contracts.names import ProjectRef
from workflows.contracts.projects import ProjectState

STATE_TYPE: Final = "application/vnd.studio.preview+json"
RETRY_TYPE: Final = "application/vnd.studio.preview.retry+json"

_FRESH_FAILURE = timedelta(seconds=10)
_STAGE_TEXTS = {
    DevServerStage.PULLING: "Fetching the image it runs in.",
    DevServerStage.CREATING: "Preparing a container for it.",
    DevServerStage.STARTING: "Starting its dev server.",
    DevServerStage.PROBING: "Waiting for its first answer.",
}

_RESTING = {
    DevServerState.STOPPED: ("calm", "Not running", "This project sleeps. Start it to see it."),
    DevServerState.STOPPING: ("busy", "Stopping", "This project is going to sleep."),
    DevServerState.RUNNING: ("busy", "Almost there", "It runs, but doesn't answer at this moment."),
}


async def answer_in_place(services: Services, ref: ProjectRef, *, method: str, accept: str) -> Response:
    """Answer a request of the project's owner, with a 503 whatever it shows: where Traefik asks, a 200 would let it in.

    Raises `NotFoundError` when the project is gone.
    """
    if RETRY_TYPE in accept:
        return _as_state(await _start(services, ref, await _view(services, ref)))
    if STATE_TYPE in accept:
        return _as_state(_present(await _view(services, ref)))
    if method in {"GET", "HEAD"} and "text/html" in accept:
        view = await _view(services, ref)
        state = await _start(services, ref, view) if _wakes(view) else _present(view)
        return waiting_page(services.config, state)
    raise UnavailableError("The project isn't running; its owner starts it by opening it in a browser.")


def _wakes(view: PreviewView) -> bool:
    if view.project_state not in {ProjectState.READY, ProjectState.PROVISIONING}:
        return False
    if view.state == DevServerState.FAILED:
        return view.now - view.since >= _FRESH_FAILURE
    return view.state in {DevServerState.STOPPED, DevServerState.STOPPING}


async def _start(services: Services, ref: ProjectRef, view: PreviewView) -> dict[str, Any]:
    """Ask for a start unless one is under way, and tell how it stands then."""
    if view.state in {DevServerState.STARTING, DevServerState.RUNNING}:
        return _present(view)
    async with services.database.transaction() as session:
        project = await projects.get(session, ref.project_id)
    if project is None:
        raise NotFoundError
    try:
        await dev_servers_service.command(services, project, DevServerAction.START)
    except StudioError as error:
        return _state("bad", "It can't be started now", error.detail, can_retry=error.retryable)
    return _present(await _view(services, ref))


async def _view(services: Services, ref: ProjectRef) -> PreviewView:
    async with services.database.reading() as session:
        view = await previews.view(session, ref.project_id)
    if view is None:
        raise NotFoundError
    return view


def _present(view: PreviewView) -> dict[str, Any]:
    if view.project_state == ProjectState.FAILED:
        return _state("bad", "This project could not be made", view.project_reason or "")
    if view.project_state == ProjectState.DELETING:
        return _state("bad", "This project is being deleted", "Nothing runs here any more.")
    if view.state == DevServerState.FAILED:
        return _state("bad", "It isn't running", _failure_text(view), can_retry=True, log_tail=view.log_tail)
    if view.state == DevServerState.STARTING:
        return _present_start(view)
    return _state(*_RESTING[DevServerState(view.state)], can_retry=view.state == DevServerState.STOPPED)


def _failure_text(view: PreviewView) -> str:
    reason = view.reason or "Its dev server ended by itself."
    code = f"exit code {view.exit_code}"
    return reason if view.exit_code is None or code in reason else f"{reason} ({code})"


def _present_start(view: PreviewView) -> dict[str, Any]:
    if view.project_state == ProjectState.PROVISIONING:
        return _state("busy", "Creating the project", "It starts as soon as its files are there.")
    if view.stage is None:
        return _state("busy", "Waking up", "It will be here in a moment.")
    stage = DevServerStage(view.stage)
    return _state("busy", "Waking up", _STAGE_TEXTS[stage], stage=stage)


def _state(
    tone: str,
    title: str,
    text: str,
    *,
    stage: DevServerStage | None = None,
    log_tail: str | None = None,
    can_retry: bool = False,
) -> dict[str, Any]:
    return {
        "tone": tone,
        "title": title,
        "text": text,
        "stage": stage,
        "log_tail": log_tail,
        "can_retry": can_retry,
    }


def _as_state(state: dict[str, Any]) -> Response:
    headers = {"cache-control": "no-store"}
    return JSONResponse(state, HTTPStatus.SERVICE_UNAVAILABLE, headers=headers, media_type=STATE_TYPE)


def as_problem(error: StudioError) -> Response:
    """The error as a problem document that no cache keeps."""
    answer = problem_of(error)
    if answer is None:
        raise error
    response = answer.response()
    response.headers["cache-control"] = "no-store"
    return response
