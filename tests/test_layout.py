"""Who may import whom, and nothing else."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {"quire", "pipelines", "trainers", "tune", "serve", "bench", "deploy"}
ALLOWED = {
    "quire": set(),
    "pipelines": {"quire"},
    "trainers": {"quire"},
    "serve": {"quire"},
    "tune": {"trainers", "quire"},
    "deploy": set(),
    "bench": ROOMS,
}
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Top-level names of absolute imports in a file."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    assert (imports(path) & ROOMS) - {room} <= ALLOWED[room]


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "quire")], ids=lambda path: path.stem)
def test_the_library_knows_no_ray(path: Path) -> None:
    assert "ray" not in imports(path)


def test_no_module_at_the_root_and_no_room_hides_the_standard_library() -> None:
    # Ray workers put the shipped directory before the standard library.
    assert not list(ROOT.glob("*.py"))
    assert not ROOMS & set(sys.stdlib_module_names)


def test_every_room_is_a_package() -> None:
    # A folder without __init__.py loses to any installed package of that name.
    assert [room for room in ROOMS if (ROOT / room).is_dir() and any((ROOT / room).glob("*.py"))] == [
        room for room in ROOMS if (ROOT / room / "__init__.py").is_file()
    ]
