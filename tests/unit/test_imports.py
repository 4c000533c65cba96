"""The house stands: no circle of imports of any kind, no package that imports one above it, few modules at the top."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import kdx

PACKAGE = Path(kdx.__file__).parent
# From the ground up: each may import those before it, anywhere in its code.
FLOORS = (
    *("errors", "rng", "formatting", "console", "storage", "config", "device", "data", "models", "deploy", "measure"),
    *("training", "runs", "methods", "checks", "logits", "teacher", "chain", "experiment", "analysis", "export"),
    *("bench", "sweep", "reproduce", "report", "cli", "__main__"),
)


def modules() -> dict[str, Path]:
    """Every module of kdx by its dotted name."""
    names = {path: ("kdx", *path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of kdx that a file imports, also within functions and for type checking only."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{each.name}") in known else node.module for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return found & known.keys()


def test_no_circle_of_imports():
    known = modules()
    graph = {name: imported(path, known) - {name} for name, path in known.items()}
    assert sum(map(len, graph.values())) > 500
    # Raises CycleError, which names the circle.
    TopologicalSorter(graph).prepare()


def test_no_package_imports_one_above_it():
    known = modules()
    floors = {name: number for number, name in enumerate(FLOORS)}
    arrows = [
        (importer, name)
        for importer, path in known.items()
        for name in imported(path, known)
        if importer != "kdx" and name != "kdx"
    ]
    upwards = [
        f"{importer} imports {name}"
        for importer, name in arrows
        if floors[name.split(".")[1]] > floors[importer.split(".")[1]]
    ]
    assert upwards == []
    assert {name.split(".")[1] for name in known if name != "kdx"} == {*FLOORS}


def test_few_modules_lie_outside_of_packages():
    assert len([path for path in PACKAGE.glob("*.py") if not path.name.startswith("__")]) <= 10
