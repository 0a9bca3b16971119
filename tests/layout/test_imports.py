"""The import table holds: schema <- holders <- movers <- surface, and no sibling imports a sibling."""

import ast
from pathlib import Path

import pytest

from mainstem import layout

PACKAGE = Path(layout.__file__).parent
KNOWN = {*layout.UNDER_ALL, *layout.HOLDERS, *layout.MOVERS, *layout.SURFACE}


def folders_imported(source: str) -> set[str]:
    """Direct children of the package that `source` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            names = [node.module or ""]
            if node.module == "mainstem":
                names = [f"mainstem.{alias.name}" for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("mainstem.")}
    return found


def offences(folder: str, source: str) -> set[str]:
    return folders_imported(source) - {folder, "__version__"} - layout.allowed(folder)


def sources() -> list[tuple[str, Path]]:
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE]
    return [(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path) for path in files]


@pytest.mark.parametrize(("folder", "path"), sources(), ids=lambda value: str(value).removeprefix(str(PACKAGE)))
def test_imports_follow_the_table(folder: str, path: Path) -> None:
    assert folder in KNOWN, f"{folder} is not in mainstem/layout.py: is it a holder, a mover or surface?"
    assert not offences(folder, path.read_text()), f"{path.name} may import only {sorted(layout.allowed(folder))}"


def test_every_folder_of_the_table_exists() -> None:
    present = {folder for folder, _ in sources()}
    assert present >= KNOWN


def test_names_say_something() -> None:
    bad = {"util", "utils", "helper", "helpers", "common", "misc", "core", "manager"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in bad]


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("features", "from mainstem.catalog import open"),  # sibling holders
        ("join", "import mainstem.rank.order"),  # sibling movers
        ("models", "def f():\n    from mainstem.train import x"),  # upwards, and hidden in a function
        ("schema", "from mainstem import weights"),
        ("serve", "from mainstem.loop import Loop"),  # against the surface's order
    ],
)
def test_canary_forbidden_imports_are_caught(folder: str, source: str) -> None:
    assert offences(folder, source)
