"""What the tools' arguments have in common: unknown fields are refused, and paths are written in one way."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints

MAX_PATH = 4096


class ToolArguments(BaseModel):
    """Base of the argument models. Every field has a description: models read it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def without_nul(text: str) -> str:
    """The text. Raises `ValueError` when it has a zero byte, which neither programs nor the database take."""
    if "\0" in text:
        raise ValueError("a zero byte can't be part of it")
    return text


def _without_dot(path: str) -> str:
    while path.startswith("./") and len(path) > len("./"):
        path = path[2:].lstrip("/")
    return path


def _folder(path: str) -> str:
    path = _without_dot(path)
    if path in {".", "./"}:
        return ""
    return path.rstrip("/") or path


PlainText = Annotated[str, AfterValidator(without_nul)]
"""Text for a program's argument list, or for the database."""

CallId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
"""The id of a `run_command` call, as the ledger takes it."""

ProjectPath = Annotated[PlainText, StringConstraints(min_length=1, max_length=MAX_PATH), AfterValidator(_without_dot)]
"""A path as the FileStore takes it, without a leading `./`, which says nothing. All else is the store's to judge."""

FolderPath = Annotated[PlainText, StringConstraints(max_length=MAX_PATH), AfterValidator(_folder)]
"""A folder's path; `""` is the project's own, which models also write as `.`."""
