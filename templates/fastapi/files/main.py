from datetime import UTC, datetime
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

app = FastAPI(title="New service")
page = Path(__file__).parent / "index.html"


@app.get("/", response_class=HTMLResponse, include_in_schema=False)
def index() -> str:
    return page.read_text()


@app.get("/api/hello")
def hello(name: str = "world") -> dict[str, str]:
    return {"message": f"Hello, {name}!", "time": datetime.now(UTC).isoformat()}
