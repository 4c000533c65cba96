"""The wheel, installed elsewhere and run from another folder: the YAML groups come with it."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from helpers import ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    target, wheels = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("wheels")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    with ZipFile(wheel) as file:
        names = set(file.namelist())
    shipped = {f"kdx/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    template = ROOT / "kdx" / "report" / "template"
    shipped |= {str(path.relative_to(ROOT)) for path in template.iterdir()}
    assert {f"kdx/report/template/{name}" for name in ("page.html", "page.js", "style.css")} < shipped
    assert shipped <= names
    # Hydra finds launchers in this namespace only.
    own = ("kdx", "hydra_plugins/kdx_")
    assert not [name for name in names if not name.startswith(own)], "only the package, under its own name"
    return target


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "KDX_OUTPUTS"}
    # Our folder precedes the checkout, which an editable install appends.
    environment["PYTHONPATH"] = str(installed)
    return subprocess.run(
        [sys.executable, "-m", "kdx", *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path):
    program = "import kdx; from kdx.config.groups import conf_folder; print(kdx.__file__, conf_folder())"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [str(installed / "kdx" / "__init__.py"), str(installed / "kdx" / "conf")]


def test_help_finds_the_groups(installed: Path, tmp_path: Path):
    result = run(installed, tmp_path, "train", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "st-vbd" in result.stdout


def test_mistakes_are_told(installed: Path, tmp_path: Path):
    result = run(installed, tmp_path, "train", "method=st-vdb")
    assert result.returncode == 2
    assert "did you mean 'st-vbd'?" in result.stderr


def test_the_console_script(installed: Path, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    words = [sys.executable, str(installed / "bin" / "kdx"), "--version"]
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("kdx ")
