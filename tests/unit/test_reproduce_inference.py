"""Speed-ups from the times that `kdx bench` left."""

from pathlib import Path

import pytest

from kdx.files import write_csv, write_json
from kdx.report.inference import COLUMNS, PLACE, TABLE
from kdx.reproduce.inference import speedups

ROWS = [
    # network, form, runtime, batch, threads, median
    ("teacher", "dense", "torch", 1, 1, 60.0),
    ("teacher", "dense", "onnxruntime", 1, 1, 30.0),
    ("teacher", "dense", "torch", 32, 1, 600.0),
    ("student", "dense", "torch", 1, 1, 20.0),
    ("student", "dense", "onnxruntime", 1, 1, 5.0),
    ("student", "masked", "torch", 1, 1, 120.0),
    ("student", "CSR", "kdx.deploy", 1, 1, 15.0),
    # A form that several runtimes have counts in that of the teacher.
    ("student", "dense", "kdx.deploy", 1, 1, 6.0),
    ("student", "CSR", "kdx.deploy", 1, 2, 1.0),
]


def test_ratios_are_those_of_one_image_on_one_thread(tmp_path: Path):
    rows = [dict(zip(COLUMNS, (*row, row[-1], row[-1], 100, None), strict=True)) for row in ROWS]
    write_csv(tmp_path / TABLE, COLUMNS, rows)
    write_json(tmp_path / PLACE, {"cpu": "some"})
    found = speedups(tmp_path, time=True, budget="paper")
    assert found == pytest.approx({"speedup.masked": 0.5, "speedup.dense": 3.0, "speedup.csr": 4.0})


def test_a_measurement_that_was_killed_is_none(tmp_path: Path):
    rows = [dict(zip(COLUMNS, (*row, row[-1], row[-1], 100, None), strict=True)) for row in ROWS]
    write_csv(tmp_path / TABLE, COLUMNS, rows)
    assert speedups(tmp_path, time=False, budget="paper") == {}


def test_nothing_is_timed_where_nothing_may_be_trained(tmp_path: Path):
    assert speedups(tmp_path, time=False, budget="paper") == {}
