"""The house's rules, read off the imports: directions, and which module alone may do what."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent
MODULES = sorted([*(TOP / "imagebuilder").rglob("*.py"), *(TOP / "provisionserver").rglob("*.py")])

# Lowest first: a module may import from its own floor's left neighbours and from every floor below.
FLOORS = [
    {"errors", "paths", "janitor", "inputs"},
    {"process", "options", "ui", "interrupt"},
    {"plugins"},
]

ONLY_HERE = {
    "subprocess": {"imagebuilder/process.py"},
    "asyncio": {"imagebuilder/qemu/qmp.py"},
    "libvirt": {"provisionserver/hypervisor.py"},
}


def name(path: Path) -> str:
    return str(path.relative_to(TOP))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, dotted."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def ours(path: Path) -> set[str]:
    return {module for module in imports(path) if module.split(".")[0] in ("imagebuilder", "provisionserver")}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imagebuilder_never_imports_provisionserver(path: Path) -> None:
    if path.is_relative_to(TOP / "imagebuilder"):
        assert not {module for module in ours(path) if module.startswith("provisionserver")}


@pytest.mark.parametrize("path", MODULES, ids=name)
@pytest.mark.parametrize("library", ONLY_HERE)
def test_each_library_has_one_home(path: Path, library: str) -> None:
    if name(path) not in ONLY_HERE[library]:
        assert library not in {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("floor", range(len(FLOORS)))
def test_low_floors_import_only_downward(floor: int) -> None:
    allowed = {"imagebuilder", *(f"imagebuilder.{module}" for below in FLOORS[: floor + 1] for module in below)}
    for module in FLOORS[floor]:
        path = TOP / "imagebuilder" / f"{module}.py"
        wrong = {found for found in ours(path) if not any(found == ok or found.startswith(ok + ".") for ok in allowed)}
        assert not {found for found in wrong if found.count(".") == 1 and _is_module(found)}, path


def _is_module(dotted: str) -> bool:
    return (TOP / (dotted.replace(".", "/") + ".py")).exists()


def graph() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports when it is imported."""
    known = {name(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__"): path for path in MODULES}
    return {module: {found for found in ours(path) if found in known} - {module} for module, path in known.items()}


def rooms() -> dict[str, set[str]]:
    """The same between folders; a module of the top folder is a room of its own."""
    found: dict[str, set[str]] = {}
    for module, below in graph().items():
        found.setdefault(room(module), set()).update({room(other) for other in below} - {room(module)})
    return found


def room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("edges", [graph, rooms], ids=["modules", "folders"])
def test_no_circles(edges: Callable[[], dict[str, set[str]]]) -> None:
    below, done = edges(), set[str]()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for other in below[module]:
                if other not in ("imagebuilder", "provisionserver"):
                    visit(other, (*trail, module))
            done.add(module)

    for module in below:
        visit(module, ())


def test_only_the_command_line_is_above_the_build() -> None:
    above = {module for module, below in graph().items() if "imagebuilder.build" in below}
    assert above <= {"imagebuilder.cli", "imagebuilder.workers", "imagebuilder.results"}


def test_only_ui_and_cli_print() -> None:
    speakers = {"imagebuilder/ui.py", "imagebuilder/cli.py", "provisionserver/cli.py"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            printing = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not printing or name(path) in speakers, f"{name(path)} prints"


def test_no_shell_is_handed_data() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "shell":
                raise AssertionError(f"{name(path)} uses shell=")


@pytest.mark.parametrize("directory", ["distros", "kickstarts", "builds"])
def test_data_directories_hold_no_code(directory: str) -> None:
    assert not list((TOP / directory).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_modules_are_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 450
