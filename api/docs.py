"""`/docs`, and `/` leads there: Swagger UI, served from here: it works without a network and under a strict CSP."""

from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

router = APIRouter(include_in_schema=False)

_STATIC = Path(str(files("fastapi_offline"))) / "static"
_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DAY = {"cache-control": "public, max-age=86400"}

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Studio API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """\
SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true});
"""


@router.get("/")
async def home() -> RedirectResponse:
    """Lead people who come by the bare address, as from a closed preview, to something they can read."""
    return RedirectResponse("/docs")


@router.get("/docs")
async def page() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(_PAGE, headers={"content-security-policy": _CSP})


@router.get("/docs/start.js")
async def start() -> Response:
    """Return the page's script: a file of its own, because the CSP allows no script in the page."""
    return Response(_START, media_type="text/javascript")


@router.get("/docs/swagger-ui-bundle.js")
async def bundle() -> FileResponse:
    """Swagger UI itself."""
    return FileResponse(_STATIC / "swagger-ui-bundle.js", media_type="text/javascript", headers=_DAY)


@router.get("/docs/swagger-ui.css")
async def stylesheet() -> FileResponse:
    """Its looks."""
    return FileResponse(_STATIC / "swagger-ui.css", media_type="text/css", headers=_DAY)
