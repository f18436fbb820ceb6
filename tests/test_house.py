"""House rules that no linter knows: read from the code itself."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOMS = ("workflows", "activities", "storage", "api", "workers")


def _modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text())
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
    }


def test_only_the_engine_commits() -> None:
    """A service that commits by itself splits what must be one transaction. (A staged file is committed too.)"""
    committing = {
        name
        for name, tree in _modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "commit"
        and not name.startswith("activities/files/")
    }
    assert committing <= {"storage/engine.py"}


def test_nobody_but_the_opener_and_the_processes_knows_the_mode() -> None:
    """`if mode ==` in a feature is how one system becomes three."""
    knowing = {
        name
        for name, tree in _modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Name | ast.Attribute)
        and (node.id if isinstance(node, ast.Name) else node.attr)
        in {"RuntimeMode", "DeploymentMode", "deployment_mode"}
    }
    assert {name for name in knowing if not name.startswith("workers/")} <= {"activities/runtimes/open.py"}


def test_every_room_and_module_says_what_it_is() -> None:
    silent = [name for name, tree in _modules().items() if tree.body and ast.get_docstring(tree) is None]
    assert silent == []


def test_there_is_no_python_where_it_would_shadow_a_package() -> None:
    assert [path for room in ("docker", "k8s") for path in (ROOT / room).rglob("*.py")] == []
