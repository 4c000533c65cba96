"""What scripts/gpu_check says of a Python that lacks packages, and that what it lists to be carried is all."""

import os
import re
import subprocess
import tarfile
from importlib import metadata
from pathlib import Path

import gpu_packages
import pytest
from helpers import ROOT
from packaging.requirements import Requirement

CHECK = (ROOT / "scripts" / "gpu_check").read_text()
# Of what the packages that are carried need, this is where torch, scikit-learn and pytest are.
THERE = {"packaging", "pyyaml", "joblib"}


def test_everything_unfit_is_told_at_once_with_who_needs_it():
    there = {
        "numpy": ("1.25", []),
        "rich": ("14.0", ["markdown-it-py>=2.2", "ipywidgets; extra == 'jupyter'", "gone; python_version < '3'"]),
        "Torch": ("2.11.0+cu130", ["nvidia-cublas==1"]),
    }
    found = gpu_packages.unfit(
        ["numpy>=1.26", "pydantic>=2.11", "rich>=13.7", "torch>=2.11"],
        {name.lower(): what for name, what in there.items()}.get,
        {"pydantic": "2.14.3"},
    )
    assert found == {
        "numpy": "1.25 is there; kdx needs numpy>=1.26",
        "pydantic": "absent; kdx needs pydantic>=2.11, of which 2.14.3 was tested",
        "markdown-it-py": "absent; rich needs markdown-it-py>=2.2, of which any was tested",
    }


def test_nothing_is_unfit_here():
    assert gpu_packages.unfit(gpu_packages.requirements(), gpu_packages.installed, gpu_packages.pins()) == {}


def test_the_wheels_are_all_that_those_packages_need():
    listed = re.search(r'^carried="([^"]+)"', CHECK, re.MULTILINE)
    assert listed is not None
    carried = set(listed[1].split())
    needed = {
        re.sub(r"[-_.]+", "-", requirement.name).lower()
        for package in carried
        for requirement in map(Requirement, metadata.requires(package) or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    assert needed <= carried | THERE
    assert carried <= gpu_packages.pins().keys()


def test_what_cannot_be_imported_is_told_with_the_others(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(gpu_packages, "MODULES", ("json", "kdx.not_there", "kdx.nor_there"))
    assert gpu_packages.main() == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said[:-1]] == ["kdx.not_there", "kdx.nor_there"]


def test_words_that_are_not_known_are_a_mistake():
    finished = subprocess.run([str(ROOT / "scripts" / "gpu_check"), "test"], capture_output=True, text=True)
    assert finished.returncode == 2
    assert finished.stderr == "gpu_check: 'test' is not known; allowed: packages, tests, benchmark, wheels, cifar10\n"


def test_cifar10_is_packed_into_files_that_python_unpacks(tmp_path: Path):
    files = {
        f"cifar-10-batches-py/{name}": name.encode()
        for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    check = str(ROOT / "scripts" / "gpu_check")
    subprocess.run(
        [check, "cifar10", str(tmp_path / "packed")],
        env=os.environ | {"KDX_DATA": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    found = {}
    for number in (1, 2, 3):
        with tarfile.open(tmp_path / "packed" / f"{number}.tar.xz") as packed:
            packed.extractall(tmp_path / "there", filter="data")
            found |= {name: (tmp_path / "there" / name).read_bytes() for name in packed.getnames()}
    assert found == files
