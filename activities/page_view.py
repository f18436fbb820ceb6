"""What is asked of a visit to a page, and what comes of it: spoken by two processes over pipes."""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

MAX_TEXT: Final = 8_000
"""Characters of visible text that a visit brings home; one more when there is more."""
MAX_IMAGE: Final = 1024 * 1024
MAX_FINDINGS: Final = 40
MAX_FINDING: Final = 400


class Visit(BaseModel):
    """A visit. `preview`: address without a path; `token` opens it, once. `gateway_port`: the only way there.

    `starter`: what starts the browser, with `profile` as its folder. `wait_s`: from loaded to looking.
    """

    model_config = ConfigDict(frozen=True)

    preview: str
    token: str = Field(repr=False)
    path: str
    gateway_port: int
    starter: str
    profile: str
    wait_s: float
    width: int
    height: int


class Finding(BaseModel):
    """Something that the page complains of. `target`: `host:port` of a request that got no answer."""

    text: str
    target: str | None = None


class PageView(BaseModel):
    """What was seen. `status` None: the page was left before it was known.

    `findings`: console errors and warnings, exceptions and failed requests, in order; there are more with
    `more_findings`. `left_for`: the page led away from the preview, to this address; then nothing of it is shown.
    `error`: why there is nothing to see at all.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    path: str = ""
    status: int | None = None
    title: str = ""
    text: str = ""
    image: bytes | None = None
    left_for: str | None = None
    error: str | None = None
    notes: list[str] = []
    findings: list[Finding] = []
    more_findings: bool = False
