"""The two pages that people see in front of a preview. Self-contained, with a policy that runs our own script only."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from starlette.responses import HTMLResponse

from api.services import ApiConfig

_FOLDER = Path(__file__).parent
_PAGE = Template((_FOLDER / "page.html").read_text())
_STYLE = (_FOLDER / "page.css").read_text()
_SCRIPT = (_FOLDER / "page.js").read_text()


def _source_hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


_POLICY = (
    f"default-src 'none'; script-src {_source_hash(_SCRIPT)}; style-src {_source_hash(_STYLE)}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


def waiting_page(config: ApiConfig, state: Mapping[str, Any]) -> HTMLResponse:
    """A 503 that shows `state` (`tone`, `title`, `text`, …), asks for newer ones, and reloads when the app answers."""
    response = _page(config, 503, state, state)
    response.headers["retry-after"] = "2"
    return response


def closed_page(config: ApiConfig, status: int, title: str, text: str) -> HTMLResponse:
    """A page for whom the preview stays closed, with the way to the studio."""
    action = (
        f'<a class="button" target="_blank" rel="noopener" href="{html.escape(config.public_url)}">Open the studio</a>'
    )
    return _page(config, status, {"tone": "closed", "title": title, "text": text}, None, action)


def _page(
    config: ApiConfig, status: int, shown: Mapping[str, Any], state: Mapping[str, Any] | None, action: str = ""
) -> HTMLResponse:
    body = _PAGE.substitute(
        {name: html.escape(str(shown[name])) for name in ("tone", "title", "text")},
        style=_STYLE,
        script=_SCRIPT,
        action=action,
        # Inside a script element only `<` could end it.
        state=json.dumps(state).replace("<", "\\u003c"),
    )
    framing = " ".join((config.public_url, *config.cors_origins))
    headers = {"content-security-policy": f"{_POLICY} {framing}", "cache-control": "no-store"}
    return HTMLResponse(body, status, headers)
