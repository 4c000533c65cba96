"""The trade-off picture: experiments as points with intervals, and the published networks."""

import csv
import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import yaml
from helpers import ROOT

from kdx.analysis.statistics import Estimate
from kdx.errors import UserError
from kdx.report.plot import experiments, picture, published, trade_off


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two seeds of ST-VBD, one of KD, and a student of which nothing is left."""
    runs = [("st-vbd", 0, 1.5, 20.0), ("st-vbd", 1, 1.7, 30.0), ("kd", 0, 1.4, 1.0), ("svd", 0, 90.0, None)]
    for method, seed, error, sparsity in runs:
        folder = tmp_path / "runs" / "mnist" / "lenet-300-100" / method / f"{method}{seed}"
        folder.mkdir(parents=True)
        names = {"run_id": folder.name, "dataset": "mnist", "method": method, "student": "lenet-300-100"}
        figures = {"seed": seed, "test_error_percent": error, "R_s": sparsity, "csr_runtime": "csr scipy"}
        (folder / "metrics.json").write_text(json.dumps(names | figures))
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, "method": {"name": method}}))
    return tmp_path


def test_experiments_and_published_networks(outputs: Path):
    axes = "R_s", "test_error_percent"
    points = [*experiments("mnist", outputs, *axes), *published("mnist", *axes)]
    files = trade_off(points, outputs / "plots" / "mnist", *axes)
    assert [file.name for file in files] == ["mnist.svg", "mnist.png", "mnist.csv"]
    assert all(file.stat().st_size > 100 for file in files)
    with files[-1].open(newline="") as file:
        rows = list(csv.DictReader(file))
    ours = {row["method"]: row for row in rows if not row["published_in"]}
    # Nothing is left of svd's student, so it has no R_s.
    assert ours.keys() == {"kd", "st-vbd"}
    assert (ours["st-vbd"]["seeds"], float(ours["st-vbd"]["R_s"])) == ("2", 25.0)
    interval = Estimate((20.0, 30.0)).half_width
    assert float(ours["st-vbd"]["R_s_interval95"]) == interval
    assert ours["kd"]["R_s_interval95"] == ""
    theirs = {(row["student"], row["published_in"]): row for row in rows if row["published_in"]}
    assert float(theirs["Le-L-ST-VBD", "vs/table1"]["test_error_percent"]) == 1.88
    assert float(theirs["S1-ST-SVD", "vs/table2"]["R_s"]) == 17.31


@pytest.mark.parametrize(
    ("student", "method", "shown"),
    [
        ("*", "st-*", {"st-vbd"}),
        ("*", "kd,st-*", {"kd", "st-vbd"}),
        ("mlp-500-50,lenet-300-100", "kd", {"kd"}),
    ],
)
def test_chosen_runs(outputs: Path, student: str, method: str, shown: set[str]):
    points = experiments("mnist", outputs, where={"student": student, "method": method})
    assert {point.method for point in points} == shown


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ({}, {"kd", "st-vbd"}),
        ({"dataset.train_size": "500"}, {"dropout"}),
        ({"dataset.train_size": "*"}, {"kd", "st-vbd", "dropout"}),
        ({"dataset.train_size": "null,500", "trainer.epochs": "1?"}, {"kd", "dropout"}),
        ({"student.hidden": "300,100"}, {"kd"}),
        ({"student.hidden": "10?", "method": "kd"}, set()),
    ],
)
def test_chosen_settings(outputs: Path, where: dict[str, str], shown: set[str]):
    runs = outputs / "runs" / "mnist" / "lenet-300-100"
    settings = {
        "seed": 0,
        "trainer": {"epochs": 10},
        "dataset": {"train_size": None},
        "student": {"hidden": [300, 100]},
    }
    (runs / "kd" / "kd0" / "config.yaml").write_text(yaml.safe_dump(settings))
    part = settings | {"dataset": {"train_size": 500}, "student": {"hidden": [10]}}
    copytree(runs / "kd", runs / "dropout")
    figures = json.loads((runs / "kd" / "kd0" / "metrics.json").read_text())
    (runs / "dropout" / "kd0" / "metrics.json").write_text(json.dumps(figures | {"method": "dropout"}))
    (runs / "dropout" / "kd0" / "config.yaml").write_text(yaml.safe_dump(part))
    if not shown:
        with pytest.raises(UserError, match=r"student\.hidden: '10\?' is not known; allowed: 300,100$"):
            experiments("mnist", outputs, where=where)
        return
    assert {point.method for point in experiments("mnist", outputs, where=where)} == shown


def test_runs_that_only_tables_tell_of(outputs: Path):
    committed = ROOT / "outputs" / "paper" / "vs"
    for name in ("table1", "fig3"):
        copytree(committed / name, outputs / "paper" / "vs" / name)
    found = experiments("mnist", outputs, recorded=True, where={"trainer.epochs": "100"})
    points = {(point.student, point.method): point for point in found}
    # One order for all, so that colours do not depend on which of them have a folder.
    assert list(points) == sorted(points)
    with (committed / "table1" / "table.csv").open(newline="") as file:
        cells = {(row["row"], row["column"]): row for row in csv.DictReader(file)}
    for method, label in (("bc", "BC"), ("ip", "IP")):
        student = "mlp-1200-1200" if method == "ip" else "lenet-300-100"
        assert points[student, method].x.mean == float(cells[label, "R_s"]["mean"])
        assert points[student, method].y.mean == float(cells[label, "test_error_percent"]["mean"])
    # A run of which no table tells R_s is not shown.
    with (committed / "fig3" / "runs.csv").open(newline="") as file:
        told = [row.get("R_s") for row in csv.DictReader(file) if row["row"] == "Le-L, KD-VBD"]
    assert len(told) == 3
    assert (("lenet-300-100", "kd-vbd") in points) == all(told)
    # The same figure of both tables: a run is one run.
    memory = experiments("mnist", outputs, x="memory_compression", y="csr_bytes", recorded=True)
    seeds = {(point.student, point.method): point.x.n for point in memory}
    assert seeds["lenet-300-100", "st-vbd"] == seeds["lenet-300-100", "kd-vbd"] == 3


def test_published_networks_are_those_with_both_numbers():
    names = [point.student for point in published("mnist", "R_s", "test_error_percent")]
    # Once each, although two rows compare with them; IP's R_s of 1.4e-6 is impossible.
    assert names.count("Le-L-ST-VBD") == 1
    assert not any(name.startswith("IP") for name in names)
    assert {"BDK (Balan et al. 2015)", "Sparse VD (Molchanov et al. 2017)"} <= set(names)
    assert published("mnist", "csr_bytes", "test_error_percent") == []
    assert {point.source for point in published("cifar10", "R_s", "test_error_percent")} == {"vs/table3"}
    # Both methods' rows of Noisy Teachers' table 6 are printed on one line.
    errors = [point.y.mean for point in published("cifar10", "multiplications_ratio", "test_error_percent")]
    assert len(errors) == 6
    assert {15.65, 19.28, 21.01} <= set(errors)


def test_every_network_has_its_mark(outputs: Path):
    points = published("mnist", "R_s", "test_error_percent")
    canvas = picture(points, "R_s", "test_error_percent")
    (axes,) = canvas.axes
    legend = canvas.legends[-1]
    letters = {text.get_text() for text in axes.texts}
    assert len(letters) == len(points)
    assert [text.get_text()[0] for text in legend.get_texts()] == sorted(letters)
    assert axes.get_xscale() == "log"
    low, high = axes.get_xlim()
    assert all(low < point.x.mean < high for point in points)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"dataset": "mnits"}, r"plot: 'mnits' is not known; did you mean 'mnist'\?"),
        ({"x": "R_q"}, r"x: 'R_q' is not known; did you mean 'R_s'\? allowed: R_s, seed, test_error_percent"),
        ({"where": {"method": "bc*"}}, r"method: 'bc\*' is not known; allowed: kd, st-vbd, svd"),
        ({"where": {"method": "svd"}}, r"x: 'R_s' is not known"),
        ({"where": {"method.nane": "kd"}}, r"key: 'method\.nane' is not known; did you mean 'method\.name'\?"),
    ],
)
def test_wrong_words(outputs: Path, words: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        experiments(**{"dataset": "mnist", "outputs": outputs, **words})
    with pytest.raises(UserError, match="holds no finished run"):
        experiments("mnist", outputs / "nothing")
