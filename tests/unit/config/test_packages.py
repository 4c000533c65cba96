"""Packages beside kdx: what they add, what names their code in a run's id, and how what is wrong with them is told."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from helpers import ROOT
from helpers.packages import install, lay_out, one_entry, sample_files
from torch import nn

from kdx.checks import check_method
from kdx.cli.help import train_help
from kdx.config.base import Count
from kdx.config.compose import compose_config, compose_sweep
from kdx.config.datasets import DATASETS, DatasetSettings
from kdx.config.groups import load_groups
from kdx.config.networks import MODELS, NetworkSettings, Student, network_of
from kdx.config.registry import package_of, packages
from kdx.data import load_data
from kdx.errors import UserError
from kdx.methods import PROCEDURES, build
from kdx.methods.method import MODIFIERS
from kdx.models import build_model
from kdx.models.refine import refined
from kdx.runs.identity import packages_record, run_id, teacher_id

STRIPES = "kdx-stripes 1.0"


@pytest.fixture
def stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample package, installed."""
    install(sample_files(), tmp_path / "a b's", monkeypatch)


def told(*words: str) -> str:
    """The one line in which these words are refused, before or when the method is built."""
    with pytest.raises(UserError) as caught:
        check_method(compose_config(words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_packages_there_are_none():
    assert packages() == []
    assert packages_record(compose_config([])) == {}


@pytest.mark.parametrize("registry", [DATASETS, MODELS, MODIFIERS, PROCEDURES])
def test_every_name_of_kdx_stands_for_a_class(registry):
    for name in registry.names():
        kind = registry.find(name, registry.group)
        assert issubclass(kind, registry.base)
        assert package_of(registry.group, name) is None


@pytest.mark.usefixtures("stripes")
def test_a_package_adds_a_data_set_a_network_a_part_and_a_procedure():
    config = compose_config(["dataset=stripes", "method=kd-smooth", "teacher2=bottleneck", "teacher2.seed=1"])
    assert type(config.dataset).__module__ == "kdx_stripes.data"
    data = load_data(config.dataset)
    assert (data.name, data.image_shape, data.classes, len(data.train)) == ("stripes", (1, 8, 8), 2, 160)
    student = build_model(config.student, data.image_shape, data.classes, seed=0)
    teacher = build_model(config.teacher, data.image_shape, data.classes, seed=0)
    assert (student.get_submodule("fc2"), teacher.get_submodule("fc2")) != (None, None)
    assert [network.get_parameter("fc2.weight").shape for network in (student, teacher)] == [(8, 32), (16, 64)]
    assert build_model(config.teacher.network(), data.image_shape, 2, seed=0)(torch.zeros(3, 1, 8, 8)).shape == (3, 2)
    method, procedure = build(config.method)
    assert [type(part).__name__ for part in method.modifiers] == ["CrossEntropy", "SmoothLabels", "Distillation"]
    assert procedure.model_dump() == {"fits": 2}
    assert refined(config.teacher.network(), "filters", 2).model_dump()["width"] == 16


@pytest.mark.usefixtures("stripes")
def test_what_it_adds_is_told_with_its_name():
    # How wide the first column is depends on all names in it.
    text = re.sub(" +", " ", train_help(["method=kd-smooth"]))
    for line in (
        "stripes Noisy stripes, lying or standing, 1x8x8 (package kdx-stripes 1.0)",
        "bottleneck The same, wider (package kdx-stripes 1.0)",
        "kd-smooth Knowledge distillation with smoothed labels, in two fits (package kdx-stripes 1.0)",
    ):
        assert line in text
    assert text.count("(package ") == 4
    assert "method.smoothing" in text
    assert told("dataset=strips").startswith("dataset: 'strips' is not known; did you mean 'stripes'? allowed: ")
    assert told("dataset.name=strips").startswith("dataset.name: 'strips' is not known; did you mean 'stripes'? ")
    assert told("student.family=botleneck").startswith("student.family: 'botleneck' is not known; did you mean 'bott")
    assert told("method.parts=[smooth]").startswith("method.parts: 'smooth' is not known; did you mean 'smooth-labels'")
    assert told("dataset=stripes", "dataset.contrast=x") == (
        "dataset.contrast: 'x' is not allowed; allowed: a whole number"
    )
    assert told("dataset=stripes", "teacher.width=0") == "teacher.width: 0 is not allowed; allowed: a whole number >= 1"
    assert told("method=kd-smooth", "method.fits=0") == "method.fits: 0 is not allowed; allowed: a whole number >= 1"
    assert "stripes has it" in told("dataset.contrast=3")
    assert told("dataset=stripes", "method=ikd", "method.refine=growth").endswith(
        "of family bottleneck; allowed: filters"
    )


@pytest.mark.usefixtures("stripes")
def test_jobs_of_a_sweep_may_use_it():
    jobs = compose_sweep(["dataset=stripes,digits", "method=kd-smooth,kd"])
    assert [len(packages_record(job.config)) for job in jobs] == [1, 1, 1, 0]
    with pytest.raises(
        UserError, match=r"^hydra\.searchpath=\[x\]: it has the folders of installed packages; allowed: "
    ):
        compose_sweep(["hydra.searchpath=[x]"])


def test_a_package_brings_what_suits_its_data_set_and_its_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = "kdx_stripes/conf/suited"
    more = {f"{folder}/stripes/kd.yaml": "T: 2.5\n", f"{folder}/digits/kd-smooth.yaml": "smoothing: 0.3\nfits: 3\n"}
    install(sample_files() | more, tmp_path, monkeypatch)
    elsewhere = compose_config(["dataset=mnist", "method=kd"]).method
    assert compose_config(["dataset=stripes", "method=kd"]).method == {**elsewhere, "T": 2.5}
    assert compose_config(["dataset=stripes", "method=kd", "method.T=8"]).method["T"] == 8
    found = compose_config(["dataset=digits", "method=kd-smooth"]).method
    assert (found["smoothing"], found["fits"]) == (0.3, 3)
    # Nothing suits this pair.
    assert compose_config(["dataset=stripes", "method=kd-smooth"]).method["smoothing"] == 0.1
    assert [job.config.method["T"] for job in compose_sweep(["dataset=stripes,digits", "method=kd"])] == [
        2.5,
        elsewhere["T"],
    ]


def test_a_setting_that_the_method_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    more = {"kdx_stripes/conf/suited/stripes/kd.yaml": "lambda_Q: 2\n"}
    install(sample_files() | more, tmp_path, monkeypatch)
    line = told("dataset=stripes", "method=kd")
    assert line.startswith("method: 'lambda_Q' is not known; did you mean 'lambda_T'? allowed: ")


def test_its_version_is_part_of_the_ids_of_what_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = {
        "all": ["dataset=stripes", "method=kd-smooth"],
        "data": ["dataset=stripes", "student=lenet-300-100", "teacher=mlp-400-400"],
        "student": ["student=bottleneck", "dataset=digits"],
        "method": ["method=kd-smooth", "dataset=digits"],
        "pruning": ["method=ikd", "method.pruning.parts=[labels,smooth-labels]"],
        "none": ["method=kd", "dataset=digits"],
    }
    before = run_id(compose_config(lines["none"])), teacher_id(compose_config(lines["none"]))
    ids = []
    for version in ("1.0", "1.1"):
        files = sample_files()
        files["pyproject.toml"] = files["pyproject.toml"].replace('version = "1.0"', f'version = "{version}"')
        with monkeypatch.context() as patch:
            install(files, tmp_path / version, patch)
            configs = {name: compose_config(words) for name, words in lines.items()}
            told = packages_record(configs["all"])["packages"]
            assert re.fullmatch(rf"kdx-stripes {version} \([0-9a-f]{{12}}\)", told)
            assert packages_record(configs["student"], "dataset", "teacher") == {}
            ids.append({name: (run_id(config), teacher_id(config)) for name, config in configs.items()})
    first, second = ids
    changed = {name: tuple(a != b for a, b in zip(first[name], second[name], strict=True)) for name in lines}
    assert changed == {
        "all": (True, True),
        "data": (True, True),
        "student": (True, False),
        "method": (True, False),
        "pruning": (True, False),
        "none": (False, False),
    }
    assert before == first["none"]


@pytest.mark.parametrize(
    ("group", "entry", "words"),
    [
        ("kdx.datasets", "broken = 'kdx_other.broken:It'", ["dataset.name=broken"]),
        ("kdx.models", "broken = 'kdx_other.broken:It'", ["student.family=broken"]),
        ("kdx.methods", "broken = 'kdx_other.broken:It'", ["method.parts=[broken]"]),
        ("kdx.procedures", "broken = 'kdx_other.broken:It'", ["method.procedure=broken", "method=ip"]),
        ("kdx.models", "broken = 'kdx_other:absent'", ["teacher.family=broken"]),
        ("kdx.methods", "broken = 'kdx_other.absent:It'", ["method.parts=[broken]"]),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_where_it_is_used(
    group: str, entry: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = one_entry(group, entry) | {"kdx_other/broken.py": "raise RuntimeError('one\\ntwo')\n"}
    install(files, tmp_path, monkeypatch)
    line, value = told(*words), entry.partition("'")[2].rstrip("'")
    assert line.startswith(
        f"{words[0].partition('=')[0]}: 'broken' is {value} of the package kdx-other 2.1, which cannot"
    )
    assert line.endswith("; repair or uninstall it")
    assert "RuntimeError: one two" in line or "absent" in line
    check_method(compose_config([]))


@pytest.mark.parametrize(
    ("group", "entry", "base"),
    [
        ("kdx.datasets", "x = 'kdx.config.networks:PlainSettings'", "kdx.config.datasets:DatasetSettings"),
        ("kdx.models", "x = 'kdx.config.datasets:MnistSettings'", "kdx.config.networks:NetworkSettings"),
        ("kdx.methods", "x = 'kdx.methods.procedure:SingleFit'", "kdx.methods.modifier:Modifier"),
        ("kdx.procedures", "x = 'kdx.errors:unknown'", "kdx.methods.procedure:Procedure"),
    ],
)
def test_what_is_registered_must_be_of_its_kind(
    group: str, entry: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    install(one_entry(group, entry), tmp_path, monkeypatch)
    words = {
        "kdx.datasets": ["dataset.name=x"],
        "kdx.models": ["student.family=x"],
        "kdx.methods": ["method.parts=[x]"],
        "kdx.procedures": ["method=ip", "method.procedure=x"],
    }
    line = told(*words[group])
    assert "of the package kdx-other 2.1; allowed: a class that is derived from " + base in line


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (
            one_entry("kdx.models", "mlp = 'kdx_other:Mlp'"),
            "package kdx-other 2.1: it registers 'mlp' in kdx.models, which is a name of kdx; uninstall one of them",
        ),
        (
            one_entry("kdx.models", "x = 'kdx_other:X'", conf__method__kd="name: kd\n"),
            "package kdx-other 2.1: its conf/method/kd.yaml is a name of kdx; uninstall one of them",
        ),
        (
            one_entry("kdx.models", "x = 'kdx_other:X'", conf__part__hint="T: 1\n"),
            "package kdx-other 2.1: its conf/part/hint.yaml is a name of kdx; uninstall one of them",
        ),
        (
            one_entry("kdx.models", "x = 'kdx_other:X'", conf__suited__digits__svd="lambda_V: 2\n"),
            "package kdx-other 2.1: its conf/suited/digits/svd.yaml is a name of kdx; uninstall one of them",
        ),
        (
            one_entry("kdx.networks", "x = 'kdx_other:X'"),
            "package kdx-other 2.1: the group of the entry point 'x': 'kdx.networks' is not known; ",
        ),
        (
            one_entry("kdx.models", "x = 'kdx_absent:X'"),
            "package kdx-other 2.1: its module kdx_absent is not there; install it again or uninstall it",
        ),
        (
            one_entry("kdx.datasets", "stripes = 'kdx_other:X'"),
            "package kdx-stripes 1.0: it registers 'stripes' in kdx.datasets, which is a name of kdx-other 2.1; ",
        ),
        (
            one_entry("kdx.models", "x = 'kdx_other:X'", conf__method__kd_smooth="name: x\n"),
            "package kdx-stripes 1.0: its conf/method/kd-smooth.yaml is a name of kdx-other 2.1; uninstall one of them",
        ),
    ],
)
@pytest.mark.usefixtures("stripes")
def test_a_name_that_is_taken_is_refused_at_once(
    files: dict[str, str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files = {name.replace("kd_smooth", "kd-smooth"): text for name, text in files.items()}
    install(files, tmp_path / "other", monkeypatch)
    assert told().startswith(line)


def test_folders_of_other_packages_and_names_with_other_folders_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    before = load_groups()
    install(one_entry("other.models", "x = 'kdx_other:X'", conf__method__kd="name: kd\n"), tmp_path, monkeypatch)
    assert (packages(), load_groups()) == ([], before)


@pytest.mark.parametrize("place", ["kdx_other/deep/conf/student/x.yaml", "kdx_other/conf/student/x.yaml"])
def test_the_configuration_is_beside_the_code_or_above_it(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = {"kdx_other/deep/__init__.py": "", "kdx_other/deep/networks.py": "", place: "# It\nname: x\n"}
    install(one_entry("kdx.models", "x = 'kdx_other.deep.networks:X'") | code, tmp_path, monkeypatch)
    assert load_groups()["student"].choices["x"].description == "It"


class Careless(NetworkSettings):
    """A family whose field is one of every teacher."""

    dropout: float


class Unbuilt(NetworkSettings):
    """A family that is no sequence."""

    def build(self, image_shape: tuple[int, int, int], classes: int) -> nn.Module:  # type: ignore[override]
        return nn.Linear(image_shape[1], classes)


class Wrong(DatasetSettings):
    """A data set that is not what it declares."""

    image_shape = (1, 9, 9)
    classes = 10
    name: Literal["digits"]  # type: ignore[assignment]

    def load(self):
        return load_data(compose_config(["dataset=digits"]).dataset)


def test_what_a_package_can_do_wrong_is_told(monkeypatch: pytest.MonkeyPatch):
    content = {"name": "x", "family": "x", "dropout": 0.1, "checkpoint": None}
    with monkeypatch.context() as patch:
        patch.setattr(MODELS, "find", lambda name, key: Careless)
        assert network_of(content, Student, "student").model_dump() == content
        assert told() == (
            f"{__name__}.Careless: its field 'dropout' is one that kdx has for every teacher; allowed: another name"
        )
    with pytest.raises(TypeError, match=r"^x: its build gives a Linear; allowed: an nn\.Sequential$"):
        build_model(Unbuilt(name="x", family="x"), (1, 8, 8), 2, seed=0)
    wrong = Wrong.model_validate(compose_config(["dataset=digits"]).dataset.model_dump())
    with pytest.raises(
        ValueError, match=r"^Wrong declares images \(1, 9, 9\) of 10 classes, its data has \(1, 28, 28\)"
    ):
        load_data(wrong)


def test_a_field_may_be_of_any_type(monkeypatch: pytest.MonkeyPatch):
    class Listed(NetworkSettings):
        widths: list[Count]

    monkeypatch.setattr(MODELS, "find", lambda name, key: Listed)
    with pytest.raises(UserError, match=r"^student\.widths\[1\]: 0 is not allowed; allowed: a whole number >= 1$"):
        network_of({"name": "x", "family": "x", "checkpoint": None, "widths": [1, 0]}, Student, "student")


def test_help_imports_neither_torch_nor_the_package(tmp_path: Path):
    files = sample_files() | {"kdx_stripes/__init__.py": "raise RuntimeError\n"}
    program = "import sys; from kdx.cli.main import main; main(['train', '--help']); assert 'torch' not in sys.modules"
    path = f"{ROOT}:{lay_out(tmp_path, files)}"
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env={"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"(package {STRIPES})" in ended.stdout
