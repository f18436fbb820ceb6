"""The templates that come with this release: a folder each, with `template.toml` and the `files/` of a new project."""

import tomllib
from pathlib import Path

from activities.ports import Template

_ROOT = Path(__file__).parents[1] / "templates"


def load_templates() -> dict[str, Template]:
    """Every template by name, as clients see it. Raises `KeyError` for a `template.toml` without a needed key."""
    found = {}
    for path in sorted(_ROOT.glob("*/template.toml")):
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        template = Template(name=told["name"], title=told["title"], description=told["description"])
        found[template.name] = template
    return found


def template_folders() -> dict[str, Path]:
    """The folder that a new project of each template is copied from."""
    return {name: _ROOT / name / "files" for name in load_templates()}
