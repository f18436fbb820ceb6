"""Shapes of the console routes."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_OUTPUT = 1024 * 1024
"""Bytes of each stream in a JSON answer; more is read, dropped, and told by `truncated`."""

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=200)]
VariableValue = Annotated[str, Field(max_length=32_768, pattern=r"^[^\x00]*$")]


class ExecIn(BaseModel):
    """A command for `sh -c`. `cwd`: relative to the project's folder. `env`: over the server's own variables."""

    model_config = ConfigDict(extra="forbid")

    command: str = Field(min_length=1, max_length=65_536, pattern=r"^[^\x00]*$")
    cwd: str = Field(".", max_length=4096, pattern=r"^[^\x00]*$")
    timeout_s: float = Field(60.0, gt=0, le=600)
    env: dict[VariableName, VariableValue] = Field(default_factory=dict, max_length=200)


class ExecOut(BaseModel):
    """How a command ended. 124 is the exit code of one whose time ran out. Text that isn't UTF-8 is replaced."""

    exit_code: int
    stdout: str
    stderr: str
    duration_ms: int
    truncated: bool
