"""Packages that add to kdx, for tests: laid out as pip leaves them, without its time."""

import re
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

from helpers import ROOT

SAMPLE = ROOT / "tests" / "samples" / "plugin"


def sample_files() -> dict[str, str]:
    """The files of the package that registers one of each kind, by path."""
    found = [path for path in SAMPLE.rglob("*") if path.suffix in (".py", ".yaml", ".toml")]
    return {path.relative_to(SAMPLE).as_posix(): path.read_text(encoding="utf-8") for path in found}


def readme_files() -> dict[str, str]:
    """The files of the package that the README shows, by path."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^`([\w./]+)`\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    return {path: f"{textwrap.dedent(block).strip()}\n" for path, block in blocks}


def lay_out(folder: Path, files: dict[str, str]) -> Path:
    """Write the files and what pip writes beside them; `folder`, to be put on the path."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    head = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(head, encoding="utf-8")
    groups = (
        "\n".join([f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())])
        for group, entries in project["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n\n".join(groups), encoding="utf-8")
    return folder


def one_entry(group: str, entry: str, name: str = "kdx-other", **files: str) -> dict[str, str]:
    """A package with one entry point, and more files: `conf__student__x` is conf/student/x.yaml of its code."""
    module = name.replace("-", "_")
    project = f'[project]\nname = "{name}"\nversion = "2.1"\n[project.entry-points."{group}"]\n{entry}\n'
    more = {f"{module}/{key.replace('__', '/')}.yaml": text for key, text in files.items()}
    return {"pyproject.toml": project, f"{module}/__init__.py": "", **more}


def install(files: dict[str, str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the package on the path of this process, until the test ends."""
    monkeypatch.syspath_prepend(str(lay_out(folder, files)))
    # Another test may have imported modules of these names from another folder.
    own = {path.partition("/")[0] for path in files}
    for name in [name for name in sys.modules if name.partition(".")[0] in own]:
        del sys.modules[name]
