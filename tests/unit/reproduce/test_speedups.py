"""Speed-ups from the times that `kdx bench` left."""

from pathlib import Path

import pytest

from kdx.bench.results import COLUMNS, PLACE, TABLE
from kdx.reproduce.speedups import speedups
from kdx.storage.files import write_csv, write_json

# Those of the first version, which compared medians.
EARLY = COLUMNS[: COLUMNS.index("against_dense")]

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


def early(folder: Path) -> None:
    rows = [dict(zip(EARLY, (*row, row[-1], row[-1], 100, None), strict=True)) for row in ROWS]
    write_csv(folder / TABLE, EARLY, rows)


def test_ratios_of_an_earlier_version_are_those_of_one_image_on_one_thread(tmp_path: Path):
    early(tmp_path)
    write_json(tmp_path / PLACE, {"cpu": "some"})
    found = speedups(tmp_path, time=True, budget="paper")
    assert found == pytest.approx({"speedup.masked": 0.5, "speedup.dense": 3.0, "speedup.csr": 4.0})


def in_rounds(folder: Path, ratios: dict[str, tuple[float | None, float, float]]) -> None:
    """A table whose medians say something else than the rounds, by form."""
    early(folder)
    rows = [dict(zip(EARLY, (*row, row[-1], row[-1], 100, None), strict=True)) for row in ROWS]
    for row in rows:
        name = f"{row['form']} in {row['runtime']}"
        if row["network"] == "student" and (row["batch"], row["threads"]) == (1, 1) and name in ratios:
            names = (f"against_teacher{end}" for end in ("", "_low", "_high"))
            row |= dict(zip(names, ratios[name], strict=True))
    write_csv(folder / TABLE, COLUMNS, rows)
    write_json(folder / PLACE, {"cpu": "some"})


QUIET = {"dense in torch": (2.5, 2.4, 2.6), "masked in torch": (0.4, 0.3, 0.42), "CSR in kdx.deploy": (8.0, 7.0, 9.0)}


def test_ratios_are_those_of_the_rounds(tmp_path: Path):
    in_rounds(tmp_path, QUIET)
    expected = {"speedup.dense": 2.5, "speedup.masked": 0.4, "speedup.csr": 8.0}
    assert speedups(tmp_path, time=True, budget="paper") == expected


def test_what_was_too_noisy_is_absent_and_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    in_rounds(tmp_path, QUIET | {"dense in torch": (None, 0.5, 522.0)})
    expected = {"speedup.masked": 0.4, "speedup.csr": 8.0}
    assert speedups(tmp_path, time=False, budget="paper") == expected
    timed: list[float] = []
    monkeypatch.setattr("kdx.reproduce.speedups.bench", lambda run, seconds: timed.append(seconds))
    monkeypatch.setattr("kdx.reproduce.speedups.write_bench", lambda _: in_rounds(tmp_path, QUIET))
    assert speedups(tmp_path, time=True, budget="paper") == expected | {"speedup.dense": 2.5}
    assert speedups(tmp_path, time=True, budget="paper") == expected | {"speedup.dense": 2.5}
    assert timed == [0.2]


def test_a_measurement_that_was_killed_is_none(tmp_path: Path):
    early(tmp_path)
    assert speedups(tmp_path, time=False, budget="paper") == {}


def test_nothing_is_timed_where_nothing_may_be_trained(tmp_path: Path):
    assert speedups(tmp_path, time=False, budget="paper") == {}
